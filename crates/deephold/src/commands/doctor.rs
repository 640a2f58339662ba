//! `deephold doctor`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use deephold_base::human_bytes;
use deephold_kernels::ceilings::{self, Ceilings};
use deephold_kernels::check::{self, Comparison};
use deephold_kernels::{Isa, PoolOptions, ThreadPool, topology};
use serde_json::{Value, json};

use super::{print_json, print_table};
use crate::cli::DoctorArgs;
use crate::console::note;
use crate::system;

pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let t = topology::topology();
    let isa = Isa::detect();
    let pool = Arc::new(ThreadPool::new(PoolOptions::default()));
    note!("measuring for about a second ...");
    let c = ceilings::measure(&pool, isa);
    let kernels = check::compare(&pool)?;
    let code =
        if kernels.iter().all(|k| k.differ.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let memory = system::memory();
    let advice = advice(&t, isa, &memory);
    if args.json {
        print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "processor": system::processor(),
            "features": t.features,
            "isa": isa.name(),
            "isa_available": Isa::available().into_iter().map(Isa::name).collect::<Vec<_>>(),
            "cpus": t.allowed_cpus,
            "cores": t.cores,
            "sockets": t.sockets,
            "numa_nodes": t.numa_nodes,
            "memory": { "total": memory.total, "available": memory.available, "limit": memory.limit },
            "ceilings": ceilings_json(&c),
            "kernels": kernels.iter().map(kernels_json).collect::<Vec<_>>(),
            "advice": advice,
        }))?;
        return Ok(code);
    }
    let bytes = |b: Option<u64>| b.map_or_else(|| "unknown".to_owned(), human_bytes);
    let mut rows = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("processor", system::processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned())),
        ("features", t.features.join(" ")),
        (
            "instruction set",
            format!(
                "{isa}, of {}",
                Isa::available().into_iter().map(Isa::name).collect::<Vec<_>>().join(", ")
            ),
        ),
        (
            "threads",
            format!(
                "{} on {} cores, {} sockets, {} memory nodes",
                t.allowed_cpus, t.cores, t.sockets, t.numa_nodes
            ),
        ),
        ("memory", format!("{} free of {}", bytes(memory.available), bytes(memory.total))),
    ];
    if let Some(limit) = memory.limit {
        rows.push(("memory limit", human_bytes(limit)));
    }
    if let Some((locked, files)) = system::limits() {
        let show = |l: &system::Limit| {
            let one = |v: Option<u64>| v.map_or_else(|| "unlimited".to_owned(), |v| v.to_string());
            format!("{} (hard {})", one(l.soft), one(l.hard))
        };
        rows.push(("open files", show(&files)));
        rows.push(("locked memory", show(&locked)));
    }
    rows.push(("read bandwidth", format!("{:.1} GB/s", c.read_bytes_per_second / 1e9)));
    rows.push(("int8 arithmetic", format!("{:.1} G multiply-adds/s", c.int8_macs_per_second / 1e9)));
    rows.push(("f32 arithmetic", format!("{:.1} GFLOP/s", c.f32_flops_per_second / 1e9)));
    rows.extend(kernels.iter().map(|k| ("kernels", kernels_text(k))));
    rows.extend(advice.into_iter().map(|a| ("advice", a)));
    print_table(&rows)?;
    Ok(code)
}

fn kernels_json(k: &Comparison) -> Value {
    json!({ "isa": k.isa.name(), "compared": k.compared, "differ": k.differ })
}

fn kernels_text(k: &Comparison) -> String {
    if k.differ.is_empty() {
        return format!("{}: the bits of the plain loops, {} kernels", k.isa, k.compared.len());
    }
    format!(
        "{}: WRONG on this processor: {}. Do not serve with it: choose another by --isa, and report this",
        k.isa,
        k.differ.join(", ")
    )
}

pub(crate) fn ceilings_json(c: &Ceilings) -> Value {
    json!({
        "read_bytes_per_s": c.read_bytes_per_second,
        "int8_macs_per_s": c.int8_macs_per_second,
        "f32_flops_per_s": c.f32_flops_per_second,
    })
}

fn advice(t: &topology::Topology, isa: Isa, memory: &system::Memory) -> Vec<String> {
    let mut out = Vec::new();
    if isa == Isa::Scalar {
        out.push("no vector instructions were found: answers will be slow; on x86-64 AVX2 is needed, on aarch64 NEON".into());
    }
    if t.numa_nodes > 1 {
        out.push(format!(
            "the machine has {} memory nodes and weights are not yet placed by node: bind the process to one \
             (`numactl --cpunodebind=0 --membind=0 deephold ...`) if the model fits into it",
            t.numa_nodes
        ));
    }
    if t.allowed_cpus > t.cores {
        out.push(format!(
            "{} hardware threads share {} cores: try --threads {} as well, decoding seldom gains from the second",
            t.allowed_cpus, t.cores, t.cores
        ));
    }
    if let (Some(limit), Some(total)) = (memory.limit, memory.total)
        && limit < total
    {
        out.push(format!("a control group limits memory to {}", human_bytes(limit)));
    }
    if let Some(available) = memory.available {
        // Weights and as much again for cache and system.
        let weights = available / 10 * 7;
        let parameters = weights as f64 / (4.85 / 8.0) / 1e9;
        out.push(format!(
            "{} free: models up to about {parameters:.0} B parameters in q4_k_m fit",
            human_bytes(available)
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_differs_is_named_with_what_to_do() {
        let mut set = Comparison { isa: Isa::Avx512, compared: vec!["Q4_K", "Q8_0", "norm"], differ: vec![] };
        assert_eq!(kernels_text(&set), "avx512: the bits of the plain loops, 3 kernels");
        set.differ = vec!["Q4_K", "norm"];
        let text = kernels_text(&set);
        assert!(text.contains("WRONG on this processor: Q4_K, norm.") && text.contains("--isa"), "{text}");
        assert_eq!(kernels_json(&set)["differ"], json!(["Q4_K", "norm"]));
    }
}
