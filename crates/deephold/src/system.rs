//! What the system says about itself. Only this program reads it; the crates below are told.

use std::time::{SystemTime, UNIX_EPOCH};

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) total: Option<u64>,
    /// Free, or kept only as a copy of files; within the control group's limit.
    pub(crate) available: Option<u64>,
    /// The control group's limit.
    pub(crate) limit: Option<u64>,
}

pub(crate) fn memory() -> Memory {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let (limit, used) = match number("/sys/fs/cgroup/memory.max") {
        Some(limit) => (Some(limit), number("/sys/fs/cgroup/memory.current")),
        None => (None, None),
    };
    let room = limit.map(|l| l.saturating_sub(used.unwrap_or(0)));
    let available = match (field("MemAvailable:"), room) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    Memory { total: field("MemTotal:"), available, limit }
}

/// Lets the process hold as many connections as the system allows it.
pub(crate) fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Where it is refused, fewer connections are held.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Seconds since 1970, for templates that write the date.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The processor as the system names it.
pub(crate) fn processor() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The resident set, in bytes.
pub(crate) fn resident() -> Option<u64> {
    own_status("VmRSS:")
}

/// The largest resident set so far, in bytes.
pub(crate) fn peak_resident() -> Option<u64> {
    own_status("VmHWM:")
}

fn own_status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// A resource limit: soft and hard; `None` for no limit.
pub(crate) struct Limit {
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

/// Locked memory and open files.
pub(crate) fn limits() -> Option<(Limit, Limit)> {
    let text = std::fs::read_to_string("/proc/self/limits").ok()?;
    let find = |name: &str| {
        let rest = text.lines().find_map(|l| l.strip_prefix(name))?;
        let mut fields = rest.split_whitespace().map(|f| f.parse::<u64>().ok());
        Some(Limit { soft: fields.next()?, hard: fields.next()? })
    };
    Some((find("Max locked memory")?, find("Max open files")?))
}

/// Whether standard output goes to systemd's journal, which says in `JOURNAL_STREAM` which file that is (systemd.exec(5)).
pub(crate) fn output_is_journal() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let output = std::fs::metadata("/proc/self/fd/1");
    output.is_ok_and(|m| stream == format!("{}:{}", m.dev(), m.ino()))
}
