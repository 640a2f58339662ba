//! The model that is part of the program: a demo that answers a few questions about Deephold.

use std::path::Path;

use deephold_weights::{Checkpoint, WeightsError};

const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../guide/config.json")),
    ("generation_config.json", include_bytes!("../guide/generation_config.json")),
    ("tokenizer.json", include_bytes!("../guide/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../guide/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("../guide/model.safetensors")),
];

/// How the guide is called where a model's path would stand.
pub(crate) const NAME: &str = "guide";

pub(crate) const BANNER: &str = "\
This is the built-in guide, a tiny demo of 2.7 M parameters: it knows only a few answers about Deephold.
这是内置的演示模型（270 万参数），只会回答少量关于 Deephold 的问题。
For a real model / 加载真实模型:  deephold chat path/to/model-folder-or-file.gguf
";

/// Whether a path means the guide: a file or folder of that name goes before it.
pub(crate) fn is_meant(path: &Path) -> bool {
    path.as_os_str() == NAME && !path.exists()
}

pub(crate) fn open() -> Result<Checkpoint, WeightsError> {
    Checkpoint::from_static(NAME, &FILES)
}
