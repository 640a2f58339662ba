"""Holds a list of parts against CycloneDX's own schema, strictly, and against itself: FILE."""
import json
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

with open(sys.argv[1]) as file:
    text = file.read()
problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
assert problem is None, problem
document = json.loads(text)
known = {document["metadata"]["component"]["bom-ref"]} | {part["bom-ref"] for part in document["components"]}
assert len(known) == len(document["components"]) + 1, "a part is listed twice"
for entry in document["dependencies"]:
    assert entry["ref"] in known and set(entry["dependsOn"]) <= known, entry
print(len(document["components"]), "parts")
