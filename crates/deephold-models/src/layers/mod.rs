//! Pieces that several families share. None of them knows a block table, a thread count or a weight format.

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod mla;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norm;

#[cfg(test)]
mod tests;
