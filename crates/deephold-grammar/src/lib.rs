//! Constrained decoding: JSON schema, regular expressions, Lark and tool calls as token masks.
