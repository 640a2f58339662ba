//! The products for AVX-512 and AVX-VNNI over their instructions in plain Rust, for machines that have only AVX2.

use super::{Layout, PANEL, QuantizedActivations, wide};
use crate::x86_model as x86;

#[path = "avx512.rs"]
#[allow(clippy::duplicate_mod, reason = "the same source over other instructions is the point")]
#[allow(
    dead_code,
    unused_unsafe,
    reason = "plain functions need no unsafe; `tile` would switch the real instructions on"
)]
mod avx512;
#[path = "avx_vnni.rs"]
#[allow(clippy::duplicate_mod, reason = "as above")]
#[allow(dead_code, unused_unsafe, reason = "as above")]
mod avx_vnni;

pub(super) use avx_vnni::Vnni as AvxVnni;
pub(super) use avx512::Vnni as Avx512Vnni;
