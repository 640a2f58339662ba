"""Asks a model for answers of 40 schemas in the style of public ones, as text and as calls: BASE_URL KEY MODEL SCHEMAS SEEDS."""
import concurrent.futures
import json
import sys
import jsonschema
import openai

base, key, model, count, seeds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
client = openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=600)


def text(most=24, **more):
    return {"type": "string", "maxLength": most, **more}


def whole(low, high, **more):
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def number(low, high):
    return {"type": "number", "minimum": low, "maximum": high}


def some(items, low=0, high=3):
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def record(required=None, **properties):
    # Everything is required, as strict schemas have it, unless a list says what is.
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required, "additionalProperties": False}


def one_of(*values):
    return {"enum": list(values)}


yes = {"type": "boolean"}
date, moment = text(format="date"), {"type": "string", "format": "date-time"}
money = record(amount=whole(0, 10**7), currency=one_of("EUR", "USD", "CNY", "GBP"))
address = record(street=text(), city=text(), postcode={"type": "string", "pattern": "^[0-9]{5}$"}, country={"type": "string", "pattern": "^[A-Z]{2}$"})
point = {"type": "array", "prefixItems": [number(-180, 180), number(-90, 90)], "items": False, "minItems": 2}

schemas = {
    "person": record(name=text(), age=whole(0, 120), email={"type": "string", "pattern": "^[a-z]{1,12}@[a-z]{1,10}\\.(com|org|de)$"}),
    "address": address,
    "invoice": record(number={"type": "string", "pattern": "^INV-[0-9]{6}$"}, issued=date, total=money, lines=some(record(text=text(), quantity=whole(1, 99), price=money), 1, 2)),
    "geojson_point": record(type={"const": "Point"}, coordinates=point),
    "geojson_feature": record(type={"const": "Feature"}, geometry=record(type={"const": "Point"}, coordinates=point), properties=record(name=text())),
    "package_json": record(name={"type": "string", "pattern": "^[a-z][a-z0-9-]{0,20}$"}, version={"type": "string", "pattern": "^[0-9]{1,2}\\.[0-9]{1,2}\\.[0-9]{1,2}$"}, private=yes, keywords=some(text(12))),
    "ci_job": record(name=text(), runs_on=one_of("linux", "windows", "mac"), steps=some({"anyOf": [record(run=text(40)), record(uses=text(30), version=whole(1, 9))]}, 1, 3)),
    "risk_score": record(decision=one_of("approve", "review", "refuse"), score=whole(0, 1000), reasons=some(one_of("income", "history", "amount", "country"), 1, 3)),
    "transaction": record(id={"type": "string", "format": "uuid"}, at=moment, amount=money, kind=one_of("card", "transfer", "cash"), flagged=yes),
    "sanction_hit": record(match=yes, list=one_of("EU", "UN", "OFAC", None), confidence=number(0, 1)),
    "loan": record(required=["principal", "months"], principal=money, months=whole(6, 480), rate=number(0, 30), purpose=one_of("house", "car", "study")),
    "defect": record(part=text(), defect=one_of("scratch", "dent", "crack", "none"), box=record(x=whole(0, 4096), y=whole(0, 4096), width=whole(1, 4096), height=whole(1, 4096)), severity=whole(1, 5)),
    "inspection": record(line=whole(1, 40), passed=yes, measures=some(record(name=text(12), value=number(0, 1000), unit=one_of("mm", "g", "C")), 1, 3)),
    "traffic_light": record(crossing={"type": "string", "pattern": "^[A-Z][0-9]{3}$"}, phases=some(record(colour=one_of("red", "yellow", "green"), seconds=whole(1, 120)), 3, 3)),
    "jam": record(road=text(), length_km=number(0, 100), cause=one_of("works", "accident", "weather", "unknown"), until={"anyOf": [moment, {"type": "null"}]}),
    "pump": record(machine=text(12), hours=whole(0, 100000), vibration_mm_s=number(0, 50), state=one_of("good", "watch", "replace")),
    "forecast": record(horizon=some(number(0, 500), 3, 5), unit={"const": "MW"}),
    "grid_alarm": record(station=text(16), kind=one_of("overload", "earth", "link"), breakers=some(whole(1, 12), 0, 4), acknowledged=yes),
    "diagnosis": record(code={"type": "string", "pattern": "^[A-Z][0-9]{2}(\\.[0-9])?$"}, text=text(60), certain=yes),
    "prescription": record(drug=text(), dose_mg=whole(1, 2000), times_a_day=whole(1, 6), days=whole(1, 90), notes={"anyOf": [text(40), {"type": "null"}]}),
    "appointment": record(patient=text(), at=moment, minutes=one_of(15, 30, 45, 60), room=whole(1, 60)),
    "triage": record(level=whole(1, 5), symptoms=some(text(20), 1, 3), call_doctor=yes),
    "ticket": record(title=text(50), priority=one_of("low", "normal", "high"), labels=some(one_of("bug", "docs", "speed")), assignee={"anyOf": [text(), {"type": "null"}]}),
    "sentiment": record(sentiment=one_of("good", "bad", "mixed"), score=number(-1, 1)),
    "entities": record(people=some(text(20)), places=some(text(20)), dates=some(date)),
    "summary": record(title=text(60), points=some(text(60), 1, 3)),
    "translation": record(source=one_of("en", "zh", "de"), target=one_of("en", "zh", "de"), text=text(60)),
    "quiz": record(question=text(60), choices=some(text(20), 4, 4), answer=whole(0, 3)),
    "recipe": record(name=text(), minutes=whole(1, 300), ingredients=some(record(what=text(16), grams=whole(1, 5000)), 1, 3)),
    "book": record(isbn={"type": "string", "pattern": "^97[89][0-9]{10}$"}, title=text(40), authors=some(text(20), 1, 2), year=whole(1450, 2100)),
    "tree": {"$ref": "#/$defs/node", "$defs": {"node": record(name=text(10), children=some({"$ref": "#/$defs/leaf"}, 0, 2)), "leaf": record(name=text(10), size=whole(0, 99))}},
    "shape": {"anyOf": [record(kind={"const": "circle"}, radius=number(0, 100)), record(kind={"const": "box"}, width=number(0, 100), height=number(0, 100))]},
    "address_book": {"type": "array", "items": record(name=text(16), phone={"type": "string", "pattern": "^\\+[0-9]{6,12}$"}), "minItems": 1, "maxItems": 3},
    "settings": {"type": "object", "properties": {"theme": one_of("dark", "light")}, "required": ["theme"], "additionalProperties": whole(0, 9), "maxProperties": 3},
    "host": record(name={"type": "string", "format": "hostname", "maxLength": 30}, ip={"type": "string", "format": "ipv4"}, ports=some(whole(1, 65535), 1, 3)),
    "deployment": record(kind={"const": "Deployment"}, replicas=whole(0, 50), image={"type": "string", "pattern": "^[a-z]{1,12}/[a-z]{1,12}:[0-9]{1,3}$"}, limits=record(cpu={"type": "string", "pattern": "^[0-9]{1,4}m$"}, memory={"type": "string", "pattern": "^[0-9]{1,4}Mi$"})),
    "log_line": record(at=moment, level=one_of("debug", "info", "warn", "error"), message=text(60)),
    "colour": {"type": "string", "pattern": "^#[0-9a-f]{6}$"},
    "sizes": {"type": "array", "items": whole(0, 100, multipleOf=5), "minItems": 2, "maxItems": 4},
    "optional": record(required=[], a=yes, b=whole(0, 9), c=one_of("x", "y"), d={"type": "null"}),
}
assert len(schemas) == 40, len(schemas)
chosen = list(schemas.items())[:: max(1, len(schemas) // count)][:count]


def ask(name, schema, seed, as_call):
    common = dict(model=model, max_tokens=1200, temperature=0.8, seed=seed, messages=[{"role": "user", "content": f"Give me an example of: {name.replace('_', ' ')}."}])
    if as_call:
        # Arguments of calls are objects.
        if schema.get("type") != "object":
            schema = record(value=schema) if "$defs" not in schema else schema
        tool = {"type": "function", "function": {"name": "save_" + name, "parameters": schema}}
        choice = client.chat.completions.create(**common, tools=[tool], tool_choice="required", parallel_tool_calls=False).choices[0]
        if choice.finish_reason == "length":
            return "cut: " + choice.message.model_dump_json()[:300]
        (call,) = choice.message.tool_calls
        assert call.function.name == "save_" + name
        answer = call.function.arguments
    else:
        form = {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
        choice = client.chat.completions.create(**common, response_format=form).choices[0]
        if choice.finish_reason == "length":
            return "cut: " + choice.message.content[:300]
        answer = choice.message.content
    jsonschema.validate(json.loads(answer), schema, format_checker=jsonschema.FormatChecker())
    return "valid"


jobs = [(name, schema, seed, as_call) for as_call in (False, True) for name, schema in chosen for seed in range(seeds)]
failed, cut = [], 0
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for job, done in [(job, pool.submit(ask, *job)) for job in jobs]:
        try:
            if done.result() != "valid":
                cut += 1
                print(*job, done.result())
        except Exception as e:
            failed.append(f"{job[0]} seed {job[2]} {'call' if job[3] else 'text'}: {type(e).__name__} {e}")
print("\n".join(failed))
print(f"{len(jobs)} answers of {len(chosen)} schemas: {len(jobs) - len(failed) - cut} valid, {cut} cut off, {len(failed)} failed")
sys.exit(bool(failed or cut))
