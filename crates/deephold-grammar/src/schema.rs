//! Schemas as the grammar engine takes them.

use serde_json::{Value, json};

/// The schema, with a space at most between the parts of what it allows: where any number may come, small models write nothing
/// else until their tokens are spent. Options of the grammar engine that somebody put into the schema do not hold, because one of
/// them is to ignore what is not supported.
pub(crate) fn compact(mut schema: Value) -> Value {
    if let Some(map) = schema.as_object_mut() {
        let options =
            json!({ "whitespace_flexible": false, "item_separator": ",[ ]?", "key_separator": ":[ ]?" });
        map.insert("x-guidance".to_owned(), options);
    }
    schema
}
