//! Bytes of the block formats, little endian, as ggml defines them.
//!
//! `d` and `dmin` are f16 bits; arrays are named as in ggml.

/// Declares a block with its byte size checked at build time.
macro_rules! block {
    ($(#[$doc:meta])* $name:ident, $bytes:literal { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

block! {
    /// 32 elements `d * qs`.
    BlockQ8_0, 34 { /** f16 scale */ d: u16, /** codes */ qs: [i8; 32] }
}
block! {
    /// 32 elements `d * (q - 8)`; low nibbles are elements 0..16, high nibbles 16..32.
    BlockQ4_0, 18 { /** f16 scale */ d: u16, /** nibbles */ qs: [u8; 16] }
}
block! {
    /// 32 elements `d * q + m`.
    BlockQ4_1, 20 { /** f16 scale */ d: u16, /** f16 offset */ m: u16, /** nibbles */ qs: [u8; 16] }
}
block! {
    /// 32 elements `d * (q - 16)`; bit i of `qh` is bit 4 of element i.
    BlockQ5_0, 22 { /** f16 scale */ d: u16, /** fifth bits */ qh: [u8; 4], /** nibbles */ qs: [u8; 16] }
}
block! {
    /// 32 elements `d * q + m`.
    BlockQ5_1, 24 {
        /** f16 scale */ d: u16, /** f16 offset */ m: u16, /** fifth bits */ qh: [u8; 4], /** nibbles */ qs: [u8; 16]
    }
}
block! {
    /// 256 elements in 16 groups: `d * (scale & 15) * q - dmin * (scale >> 4)`, q of 2 bits.
    BlockQ2K, 84 {
        /** scales and mins */ scales: [u8; 16], /** codes */ qs: [u8; 64],
        /** f16 scale */ d: u16, /** f16 scale of mins */ dmin: u16
    }
}
block! {
    /// 256 elements in 16 groups: `d * (scale - 32) * q`, q of 3 bits, -4..=3.
    BlockQ3K, 110 {
        /** third bits, set = do not subtract 4 */ hmask: [u8; 32], /** low bits */ qs: [u8; 64],
        /** 6-bit scales */ scales: [u8; 12], /** f16 scale */ d: u16
    }
}
block! {
    /// 256 elements in 8 groups: `d * scale * q - dmin * min`, q of 4 bits.
    BlockQ4K, 144 {
        /** f16 scale */ d: u16, /** f16 scale of mins */ dmin: u16,
        /** 6-bit scales and mins */ scales: [u8; 12], /** nibbles */ qs: [u8; 128]
    }
}
block! {
    /// 256 elements in 8 groups: `d * scale * q - dmin * min`, q of 5 bits.
    BlockQ5K, 176 {
        /** f16 scale */ d: u16, /** f16 scale of mins */ dmin: u16,
        /** 6-bit scales and mins */ scales: [u8; 12], /** fifth bits */ qh: [u8; 32], /** nibbles */ qs: [u8; 128]
    }
}
block! {
    /// 256 elements in 16 groups: `d * scale * (q - 32)`, q of 6 bits.
    BlockQ6K, 210 {
        /** low nibbles */ ql: [u8; 128], /** high bits */ qh: [u8; 64],
        /** scales */ scales: [i8; 16], /** f16 scale */ d: u16
    }
}
block! {
    /// 32 elements `d * IQ4_VALUES[q]`.
    BlockIQ4NL, 18 { /** f16 scale */ d: u16, /** nibbles */ qs: [u8; 16] }
}
block! {
    /// 256 elements in 8 groups: `d * (scale - 32) * IQ4_VALUES[q]`.
    BlockIQ4XS, 136 {
        /** f16 scale */ d: u16, /** high scale bits */ scales_h: u16,
        /** low scale nibbles */ scales_l: [u8; 4], /** nibbles */ qs: [u8; 128]
    }
}
