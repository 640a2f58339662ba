//! What the machine looks like, for `doctor` and for pinning.

/// Cores, sockets and memory nodes as the system reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Hardware threads that this process may use.
    pub allowed_cpus: usize,
    /// Physical cores behind them.
    pub cores: usize,
    /// Processor packages behind them.
    pub sockets: usize,
    /// Memory nodes with processors; above 1, memory is nearer to some cores than to others.
    pub numa_nodes: usize,
    /// Vector features that kernels know about and this processor has.
    pub features: Vec<&'static str>,
}

/// Reads the machine; what the system does not tell counts as 1.
pub fn topology() -> Topology {
    let cpus = allowed_cpus();
    let read = |cpu: usize, file: &str| {
        let text =
            std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{file}")).ok()?;
        text.trim().parse::<i64>().ok()
    };
    let mut cores = std::collections::BTreeSet::new();
    let mut sockets = std::collections::BTreeSet::new();
    for cpu in &cpus {
        let socket = read(*cpu, "physical_package_id").unwrap_or(0);
        sockets.insert(socket);
        cores.insert((socket, read(*cpu, "core_id").unwrap_or(*cpu as i64)));
    }
    Topology {
        allowed_cpus: cpus.len().max(1),
        cores: cores.len().max(1),
        sockets: sockets.len().max(1),
        numa_nodes: numa_nodes().max(1),
        features: features(),
    }
}

fn numa_nodes() -> usize {
    let Ok(entries) = std::fs::read_dir("/sys/devices/system/node") else { return 1 };
    let nodes = entries.flatten().filter(|e| {
        let name = e.file_name().to_string_lossy().into_owned();
        let number =
            name.strip_prefix("node").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let cpus = std::fs::read_to_string(e.path().join("cpulist")).unwrap_or_default();
        number && !cpus.trim().is_empty()
    });
    nodes.count()
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let all = [
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avxvnni", has!("avxvnni")),
        ("avx512f", has!("avx512f")),
        ("avx512bw", has!("avx512bw")),
        ("avx512vl", has!("avx512vl")),
        ("avx512vnni", has!("avx512vnni")),
        ("avx512bf16", has!("avx512bf16")),
    ];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    let all = [
        ("neon", has!("neon")),
        ("fp16", has!("fp16")),
        ("dotprod", has!("dotprod")),
        ("i8mm", has!("i8mm")),
        ("bf16", has!("bf16")),
        ("sve", has!("sve")),
    ];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

/// The hardware threads that this process may use.
#[cfg(target_os = "linux")]
pub(crate) fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is the empty set, and the call writes at most its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    }
}

/// Binds the calling thread; a refusal changes nothing but speed.
#[cfg(target_os = "linux")]
pub(crate) fn pin_to(cpu: usize) {
    // SAFETY: an all-zero cpu_set_t is the empty set; `cpu` came from `allowed_cpus`, so it is below CPU_SETSIZE.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn allowed_cpus() -> Vec<usize> {
    (0..std::thread::available_parallelism().map_or(1, |n| n.get())).collect()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn pin_to(_cpu: usize) {}

#[cfg(test)]
mod tests {
    #[test]
    fn a_machine_has_at_least_one_of_everything() {
        let t = super::topology();
        assert!(t.allowed_cpus >= t.cores && t.cores >= t.sockets && t.sockets >= 1 && t.numa_nodes >= 1);
    }
}
