//! Where test data lies: ours in the checkout, other people's in the folder `shared` beside it.
//!
//! A test that needs `shared` begins with `if skip_without_shared() { return; }`. It then says SKIPPED on the terminal
//! (past the test runner's capture) and adds a line to the file that `./test` counts. With `DEEPHOLD_NO_SKIP` set, as in
//! CI, the same test fails instead.

use std::io::Write;
use std::path::PathBuf;

/// Names the file that collects one line for each skipped test.
const SKIPPED_LIST: &str = "DEEPHOLD_SKIPPED_LIST";

/// Set to anything, it turns a skip into a failure.
const NO_SKIP: &str = "DEEPHOLD_NO_SKIP";

/// Names the folder with fetched models.
const TEST_MODELS: &str = "DEEPHOLD_TEST_MODELS";

/// The checkout: the folder with `testdata` above the crate that cargo runs. Asked at run time, since two checkouts that
/// share a target folder may share this crate's code.
fn root() -> PathBuf {
    let compiled = env!("CARGO_MANIFEST_DIR").into();
    let start = std::env::var_os("CARGO_MANIFEST_DIR").map_or(compiled, PathBuf::from);
    let found = start.ancestors().find(|folder| folder.join("testdata").is_dir());
    found.unwrap_or_else(|| panic!("no folder `testdata` above {}", start.display())).to_owned()
}

/// A file or folder of `testdata/`; panics where it is missing, since the checkout carries it.
pub fn testdata(path: &str) -> PathBuf {
    existing(root().join("testdata").join(path))
}

/// The folder of the built-in guide: a tiny DeepSeek-V3 with tokenizer, template and `expected.json`.
pub fn guide_dir() -> PathBuf {
    existing(root().join("crates/deephold/guide"))
}

/// A file or folder of `shared`, for tests that have asked [`skip_without_shared`]; panics where it is missing.
pub fn shared(path: &str) -> PathBuf {
    existing(root().join("../shared").join(path))
}

fn existing(path: PathBuf) -> PathBuf {
    path.canonicalize().unwrap_or_else(|e| panic!("{} is missing ({e})", path.display()))
}

/// Whether the folder `shared` is missing or empty, so that the test (or the part of it that needs `shared`) is left out.
///
/// # Panics
/// Where it is missing and `DEEPHOLD_NO_SKIP` is set.
pub fn skip_without_shared() -> bool {
    let missing = !root().join("../shared/README.md").is_file();
    if missing {
        skip("needs the folder `shared` beside the checkout");
    }
    missing
}

/// The fetched model of this file name in the folder that `DEEPHOLD_TEST_MODELS` names, or `None` with a note.
///
/// # Panics
/// Where it is missing and `DEEPHOLD_NO_SKIP` is set.
pub fn fetched_model(file: &str) -> Option<PathBuf> {
    let path = std::env::var_os(TEST_MODELS).map(|folder| PathBuf::from(folder).join(file));
    let found = path.filter(|p| p.exists());
    if found.is_none() {
        skip(&format!("needs {file} in the folder that {TEST_MODELS} names"));
    }
    found
}

/// Says that the running test, or a part of it, is left out.
///
/// # Panics
/// Where `DEEPHOLD_NO_SKIP` is set.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    assert!(std::env::var_os(NO_SKIP).is_none(), "{test}: {reason}, and {NO_SKIP} forbids to skip it");
    // `eprintln!` would be captured by the test runner; a write to the stream itself is not.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
    if let Some(list) = std::env::var_os(SKIPPED_LIST) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(list);
        let _ = file.and_then(|mut f| writeln!(f, "{test}"));
    }
}
