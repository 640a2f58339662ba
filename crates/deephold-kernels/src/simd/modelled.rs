//! The vectors of AVX-512 over its instructions in plain Rust, for machines that have only AVX2.

use super::{Simd, avx2};
use crate::x86_model as x86;

#[path = "avx512.rs"]
#[allow(clippy::duplicate_mod, reason = "the same source over other instructions is the point")]
mod avx512;

pub(crate) use avx512::Avx512;
