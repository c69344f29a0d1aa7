//! Shares in basis points (hundredths of a percent).

/// 100 %.
pub(crate) const FULL_BP: u32 = 10_000;
