//! Files from outside, read with a limit.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::WeightsError;

/// Opens a regular file, or a link to one. A pipe would block until someone writes to it, a device may have no end.
///
/// # Errors
/// There is none, it is something else, or the system refuses.
pub fn open_regular(path: &Path) -> Result<File, WeightsError> {
    let is_regular = |file: &std::fs::Metadata| match file.is_file() {
        true => Ok(()),
        false if file.is_dir() => Err(WeightsError::malformed(path.display().to_string(), "is a folder")),
        false => {
            let problem = "is a pipe, a socket or a device; a regular file is needed";
            Err(WeightsError::malformed(path.display().to_string(), problem))
        }
    };
    // Before it is opened, because opening a pipe may block, and of what was opened, because names can be changed between.
    is_regular(&std::fs::metadata(path).map_err(WeightsError::io("open", path))?)?;
    let file = File::open(path).map_err(WeightsError::io("open", path))?;
    is_regular(&file.metadata().map_err(WeightsError::io("read", path))?)?;
    Ok(file)
}

/// The bytes of a regular file; the limit holds while reading, whatever the file's length was said to be.
///
/// # Errors
/// As [`open_regular`]; more than `limit` bytes.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, WeightsError> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(WeightsError::io("read", path))?;
    if bytes.len() as u64 > limit {
        let limit = deephold_base::human_bytes(limit);
        let problem = format!("has more than {limit}, which is beyond what such a file holds");
        return Err(WeightsError::malformed("the file", problem).in_file(path));
    }
    Ok(bytes)
}
