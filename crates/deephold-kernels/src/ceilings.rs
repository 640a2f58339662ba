//! What this machine can do at most, measured: the figures that `bench` and `doctor` compare with.

use std::hint::black_box;
use std::time::Instant;

use crate::memory::Memory;
use crate::simd::{LANES, Simd, dispatch};
use crate::{Isa, ThreadPool};

/// Rates of all threads of the pool together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Reading a buffer far larger than the caches.
    pub read_bytes_per_second: f64,
    /// Multiply-adds on bytes, with the instructions that the integer kernels of this ISA use.
    pub int8_macs_per_second: f64,
    /// Floating-point operations, a fused multiply-add counted as two.
    pub f32_flops_per_second: f64,
}

/// Measures for about half a second; the best of several rounds each, since noise only slows down.
pub fn measure(pool: &ThreadPool, isa: Isa) -> Ceilings {
    Ceilings {
        read_bytes_per_second: read(pool, isa),
        int8_macs_per_second: rate(pool, isa, int8_macs),
        f32_flops_per_second: 2.0 * rate(pool, isa, f32_fmas),
    }
}

/// Bytes read a round: 8 times the largest L3 in common use would be too much for small machines.
const READ_BYTES: usize = 256 << 20;

/// Bytes a task.
const READ_CHUNK: usize = 1 << 18;
/// Bytes ahead that the probe asks for in every other round: which is faster depends on the machine.
const AHEAD: usize = 4096;

fn read(pool: &ThreadPool, isa: Isa) -> f64 {
    let Some(mut data) = Memory::alone(READ_BYTES) else { return 0.0 };
    let chunks: Vec<_> = data.chunks_exact_mut(READ_CHUNK).map(std::sync::Mutex::new).collect();
    pool.run(chunks.len(), &|task, _| {
        // Written, so that pages are real, by the threads that read them.
        chunks[task].lock().unwrap_or_else(std::sync::PoisonError::into_inner).fill(1);
    });
    drop(chunks);
    let mut best = 0f64;
    for round in 0..10 {
        let ahead = if round % 2 == 0 { 0 } else { AHEAD };
        let start = Instant::now();
        pool.run(READ_BYTES / READ_CHUNK, &|task, _| {
            let chunk = &data[task * READ_CHUNK..][..READ_CHUNK];
            // SAFETY: `isa` is available; a chunk is whole steps of eight vectors.
            black_box(unsafe { sum_of(isa, chunk, ahead) });
        });
        best = best.max(READ_BYTES as f64 / start.elapsed().as_secs_f64());
    }
    best
}

#[inline(always)]
unsafe fn sum_of_body<S: Simd>(bytes: &[u8], ahead: usize) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [S::splat(0.0); 8];
        for step in bytes.chunks_exact(8 * LANES * 4) {
            for (i, sum) in sums.iter_mut().enumerate() {
                let p = step.as_ptr().add(i * LANES * 4);
                if ahead > 0 {
                    S::ask_for(p.wrapping_add(ahead));
                }
                *sum = S::add(*sum, S::load(p.cast()));
            }
        }
        S::sum(sums.into_iter().reduce(|a, b| S::add(a, b)).unwrap_or(S::splat(0.0)))
    }
}
dispatch!(fn sum_of(bytes: &[u8], ahead: usize) -> f32 = sum_of_body);

/// Runs `work` on every thread at once; `work` says how many operations it did.
fn rate(pool: &ThreadPool, isa: Isa, work: fn(Isa) -> f64) -> f64 {
    let mut best = 0f64;
    for _ in 0..6 {
        let done = std::sync::Mutex::new(0f64);
        let start = Instant::now();
        pool.run(pool.threads(), &|_, _| {
            let ops = work(isa);
            *done.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += ops;
        });
        let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        best = best.max(done / start.elapsed().as_secs_f64());
    }
    best
}

const ROUNDS: usize = 2_000_000;

fn f32_fmas(isa: Isa) -> f64 {
    #[cfg(target_arch = "x86_64")]
    match isa {
        // SAFETY: `isa` is available.
        Isa::Avx512 => return unsafe { x86::f32_avx512() },
        // SAFETY: `isa` is available.
        Isa::Avx2 | Isa::AvxVnni => return unsafe { x86::f32_avx2() },
        _ => {}
    }
    let _ = isa;
    let mut acc = [[1f32; 4]; 8];
    let (a, b) = (black_box(0.999f32), black_box(1e-7f32));
    for _ in 0..ROUNDS / 16 {
        for lane in acc.as_flattened_mut() {
            *lane = *lane * a + b;
        }
    }
    black_box(acc);
    (ROUNDS / 16 * 32) as f64
}

fn int8_macs(isa: Isa) -> f64 {
    #[cfg(target_arch = "x86_64")]
    match isa {
        // SAFETY: `isa` is available.
        Isa::Avx512 => return unsafe { x86::int8_avx512() },
        // SAFETY: `isa` is available.
        Isa::AvxVnni => return unsafe { x86::int8_avx_vnni() },
        // SAFETY: `isa` is available.
        Isa::Avx2 => return unsafe { x86::int8_avx2() },
        _ => {}
    }
    let _ = isa;
    let mut acc = [0i32; 32];
    let w = black_box([3i8; 32]);
    let x = black_box([5i8; 32]);
    for _ in 0..ROUNDS / 16 {
        for i in 0..32 {
            acc[i] = acc[i].wrapping_add(i32::from(w[i]) * i32::from(x[i]));
        }
        black_box(&mut acc);
    }
    (ROUNDS / 16 * 32) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::ROUNDS;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2() -> f64 {
        let mut acc = [_mm256_set1_ps(1.0); 10];
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-7)));
        for _ in 0..ROUNDS {
            for x in &mut acc {
                *x = _mm256_fmadd_ps(*x, a, b);
            }
        }
        black_box(acc);
        (ROUNDS * 10 * 8) as f64
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512() -> f64 {
        let mut acc = [_mm512_set1_ps(1.0); 10];
        let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-7)));
        for _ in 0..ROUNDS {
            for x in &mut acc {
                *x = _mm512_fmadd_ps(*x, a, b);
            }
        }
        black_box(acc);
        (ROUNDS * 10 * 16) as f64
    }

    /// vpmaddubsw and a 16-bit add: what 4-bit products run on.
    #[target_feature(enable = "avx2")]
    pub(super) fn int8_avx2() -> f64 {
        let mut acc = [_mm256_setzero_si256(); 6];
        // Operands differ and change each round, so that no product can be shared or moved out of the loop.
        let x: [__m256i; 6] = std::array::from_fn(|i| _mm256_set1_epi8(black_box(i as i8 + 1)));
        let mut w = _mm256_set1_epi8(black_box(1));
        for _ in 0..ROUNDS {
            w = _mm256_xor_si256(w, x[0]);
            for (a, x) in acc.iter_mut().zip(x) {
                *a = _mm256_add_epi16(*a, _mm256_maddubs_epi16(w, x));
            }
        }
        black_box(acc);
        (ROUNDS * 6 * 32) as f64
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn int8_avx_vnni() -> f64 {
        let mut acc = [_mm256_setzero_si256(); 10];
        let (w, x) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi8(black_box(1)));
        for _ in 0..ROUNDS {
            for a in &mut acc {
                *a = _mm256_dpbusd_avx_epi32(*a, w, x);
            }
        }
        black_box(acc);
        (ROUNDS * 10 * 32) as f64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn int8_avx512() -> f64 {
        let mut acc = [_mm512_setzero_si512(); 10];
        let (w, x) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(1)));
        for _ in 0..ROUNDS {
            for a in &mut acc {
                *a = _mm512_dpbusd_epi32(*a, w, x);
            }
        }
        black_box(acc);
        (ROUNDS * 10 * 64) as f64
    }
}
