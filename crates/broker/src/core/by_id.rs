//! Maps and sets of numbers that the broker gave out itself, one after the other.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A client cannot choose these numbers, so their hash need not be hard to guess: it puts neighbours side by side, who
/// came together and mostly go together.
pub(crate) type ById<K, V> = HashMap<K, V, BuildHasherDefault<InOrder>>;

/// The same of numbers alone.
pub(crate) type IdSet<K> = HashSet<K, BuildHasherDefault<InOrder>>;

/// The hash of a number.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct InOrder(u64);

/// So many neighbours stay together: 2 to this power. Where such a row begins is scattered, as what is left of many numbers
/// may be every thousandth.
const ROW_BITS: u32 = 10;

/// Scatters the rows: the golden ratio's fraction of 2 to the 64, for multiplicative hashing (Knuth, The Art of Computer
/// Programming, 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The table looks for a place by the lowest bits, and tells those at a place apart by the seven highest.
const HIGHEST: u32 = 57;

impl Hasher for InOrder {
    fn write_u64(&mut self, number: u64) {
        let in_row = number & ((1 << ROW_BITS) - 1);
        let row = (number >> ROW_BITS).wrapping_mul(GOLDEN) >> 32;
        self.0 = (row + in_row) ^ number << HIGHEST;
    }

    /// For what is no such number.
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0.wrapping_mul(GOLDEN) ^ u64::from(byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn hash(number: u64) -> u64 {
        let mut hash = InOrder::default();
        hash.write_u64(number);
        hash.finish()
    }

    #[test]
    fn numbers_are_found() {
        let mut map: ById<u64, u64> = (0..100_000).map(|number| (number, number * 2)).collect();
        assert!((0..100_000).all(|number| map.remove(&number) == Some(number * 2)));
        assert!(map.is_empty());
    }

    #[test]
    fn neighbours_are_side_by_side_and_told_apart() {
        let (place, highest) = (|number| hash(number) & 0xffff, |number| hash(number) >> HIGHEST);
        assert!((5120..6000).all(|number| place(number + 1) == place(number) + 1));
        assert!((5120..6000).all(|number| highest(number + 1) != highest(number)));
    }

    #[test]
    fn what_is_left_of_many_is_scattered() {
        for stride in [1 << ROW_BITS, 1 << 12, 1 << 16, 1 << 20, 1000, 10_000] {
            let places: HashSet<u64> = (0..1000).map(|nth| hash(nth * stride) & 0x7ff).collect();
            assert!(places.len() > 600, "every {stride}th: {} places for 1,000", places.len());
        }
    }
}
