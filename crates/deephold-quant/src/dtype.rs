//! Element types of tensors: names, block sizes and GGUF numbers.

/// Element type of a stored tensor.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the formats' own.
#[allow(non_camel_case_types)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
    IQ4XS,
}

/// type, name, elements a block, bytes a block, GGUF number
type Row = (DType, &'static str, usize, usize, Option<u32>);

/// One row a type, in the order of the enum.
const TABLE: [Row; 23] = [
    (DType::F64, "F64", 1, 8, Some(28)),
    (DType::F32, "F32", 1, 4, Some(0)),
    (DType::F16, "F16", 1, 2, Some(1)),
    (DType::BF16, "BF16", 1, 2, Some(30)),
    (DType::F8E4M3, "F8_E4M3", 1, 1, None),
    (DType::I64, "I64", 1, 8, Some(27)),
    (DType::I32, "I32", 1, 4, Some(26)),
    (DType::I16, "I16", 1, 2, Some(25)),
    (DType::I8, "I8", 1, 1, Some(24)),
    (DType::U8, "U8", 1, 1, None),
    (DType::Bool, "BOOL", 1, 1, None),
    (DType::Q8_0, "Q8_0", 32, 34, Some(8)),
    (DType::Q4_0, "Q4_0", 32, 18, Some(2)),
    (DType::Q4_1, "Q4_1", 32, 20, Some(3)),
    (DType::Q5_0, "Q5_0", 32, 22, Some(6)),
    (DType::Q5_1, "Q5_1", 32, 24, Some(7)),
    (DType::Q2K, "Q2_K", 256, 84, Some(10)),
    (DType::Q3K, "Q3_K", 256, 110, Some(11)),
    (DType::Q4K, "Q4_K", 256, 144, Some(12)),
    (DType::Q5K, "Q5_K", 256, 176, Some(13)),
    (DType::Q6K, "Q6_K", 256, 210, Some(14)),
    (DType::IQ4NL, "IQ4_NL", 32, 18, Some(20)),
    (DType::IQ4XS, "IQ4_XS", 256, 136, Some(23)),
];

impl DType {
    /// Every type, in the order of the enum.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Elements a block (1 for plain types).
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes a block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Bytes of `elements` elements; `None` if they are not whole blocks or the product overflows.
    pub fn bytes_for(self, elements: usize) -> Option<usize> {
        let whole = elements.is_multiple_of(self.block_len());
        whole.then(|| (elements / self.block_len()).checked_mul(self.block_bytes())).flatten()
    }

    /// Name as ggml or safetensors writes it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The type that is called `name`, case ignored.
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// The type of a GGUF tensor entry.
    pub fn from_ggml(id: u32) -> Option<DType> {
        TABLE.iter().find(|row| row.4 == Some(id)).map(|row| row.0)
    }

    /// Number in GGUF files, if GGUF has the type.
    pub fn to_ggml(self) -> Option<u32> {
        self.row().4
    }

    /// Whether elements share scales in blocks.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Mean bits an element, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
