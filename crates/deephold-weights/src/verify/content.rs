//! What identifies a model whatever its files are called.

use sha2::{Digest, Sha256};

use crate::Checkpoint;

/// `sha256:…` over the configuration and every tensor (name, type, shape, stored bytes) in the order of their names.
/// `progress` hears how many bytes of tensors are done.
pub fn content_digest(checkpoint: &Checkpoint, progress: &mut dyn FnMut(u64)) -> String {
    let mut hasher = Sha256::new();
    hasher.update(checkpoint.config().to_string().as_bytes());
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut done = 0;
    for info in tensors {
        // A zero byte ends each part, so that no two lists of tensors read alike.
        hasher.update(format!("{}\0{}\0{:?}\0", info.name, info.dtype.name(), info.shape).as_bytes());
        if let Some(view) = checkpoint.tensor(&info.name) {
            for part in view.bytes().chunks(1 << 22) {
                hasher.update(part);
                done += part.len() as u64;
                progress(done);
            }
        }
    }
    format!("sha256:{}", hex(&hasher.finalize()))
}

/// `sha256:…` of a text.
pub fn text_digest(text: &str) -> String {
    format!("sha256:{}", hex(&Sha256::digest(text.as_bytes())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
