//! Arena placement: where buffers lie so that those alive at once do not overlap.
//!
//! Greedy by size, best fit: the largest buffer first, each into the smallest gap that is free during its whole life.
//! The compiler calls it for constant sizes, the runtime for symbolic ones, so both give the same layout.

use crate::abi::ALIGN;
use alloc::vec::Vec;

/// Places buffers of `sizes[i]` bytes, alive from `lives[i].0` to `lives[i].1` (both included). Returns the offset of each, a multiple
/// of [`ALIGN`], and the bytes of the arena. `None` if that passes `i64::MAX`.
pub fn place(sizes: &[u64], lives: &[(u32, u32)]) -> Option<(Vec<u64>, u64)> {
    assert_eq!(sizes.len(), lives.len(), "one life for each size");
    let mut order: Vec<usize> = (0..sizes.len()).filter(|&i| sizes[i] > 0).collect();
    order.sort_by_key(|&i| (core::cmp::Reverse(sizes[i]), lives[i], i));
    let mut offsets = alloc::vec![0; sizes.len()];
    // Sorted by offset, so that one walk sees the gaps.
    let mut placed: Vec<(u64, u64, usize)> = Vec::with_capacity(order.len());
    let mut total = 0;
    for i in order {
        let size = align(sizes[i])?;
        let offset = best_gap(&placed, lives, i, size)?;
        let end = offset.checked_add(size).filter(|&e| i64::try_from(e).is_ok())?;
        let at = placed.partition_point(|p| (p.0, p.1) < (offset, end));
        placed.insert(at, (offset, end, i));
        offsets[i] = offset;
        total = total.max(end);
    }
    Some((offsets, total))
}

/// The smallest gap of at least `size` bytes among what is placed and alive with buffer `i`, else the end of it.
fn best_gap(placed: &[(u64, u64, usize)], lives: &[(u32, u32)], i: usize, size: u64) -> Option<u64> {
    let (first, last) = lives[i];
    let (mut end, mut best) = (0, None);
    for &(from, to, j) in placed {
        if lives[j].0 > last || lives[j].1 < first {
            continue;
        }
        if from >= end && from - end >= size && best.is_none_or(|(gap, _)| from - end < gap) {
            best = Some((from - end, end));
        }
        end = end.max(to);
    }
    Some(best.map_or(end, |(_, offset)| offset))
}

/// The largest number of bytes alive at one time: no arena can be smaller.
pub fn lower_bound(sizes: &[u64], lives: &[(u32, u32)]) -> u64 {
    let at = |step: u32| {
        let alive = lives.iter().zip(sizes).filter(|(l, _)| l.0 <= step && step <= l.1);
        alive.fold(0u64, |sum, (_, &s)| sum.saturating_add(align(s).unwrap_or(u64::MAX)))
    };
    lives.iter().map(|l| at(l.0)).max().unwrap_or(0)
}

/// `bytes` rounded up to [`ALIGN`].
fn align(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(ALIGN as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(sizes: &[u64], lives: &[(u32, u32)]) -> u64 {
        let (offsets, total) = place(sizes, lives).unwrap();
        for i in 0..sizes.len() {
            assert!(offsets[i].is_multiple_of(ALIGN as u64) && offsets[i] + sizes[i] <= total);
            for j in 0..i {
                let together = lives[i].0 <= lives[j].1 && lives[j].0 <= lives[i].1;
                let apart = offsets[i] + sizes[i] <= offsets[j] || offsets[j] + sizes[j] <= offsets[i];
                assert!(!together || apart || sizes[i] == 0 || sizes[j] == 0, "{i} and {j} overlap");
            }
        }
        assert!(total >= lower_bound(sizes, lives));
        total
    }

    #[test]
    fn reuses_what_is_free() {
        // A chain of layers needs only two neighbours at a time.
        let lives: Vec<(u32, u32)> = (0..10).map(|i| (i, i + 1)).collect();
        assert_eq!(check(&[640; 10], &lives), 1280);
        assert_eq!(check(&[], &[]), 0);
        assert_eq!(check(&[0, 1], &[(0, 0), (0, 0)]), 64);
        // The gap that fits best is taken.
        assert_eq!(check(&[256, 64, 128, 64], &[(0, 3), (0, 0), (0, 3), (1, 3)]), 448);
        assert_eq!(place(&[u64::MAX, 1], &[(0, 0), (0, 0)]), None);
        assert_eq!(place(&[i64::MAX as u64, i64::MAX as u64], &[(0, 0), (0, 0)]), None);
    }

    proptest! {
        #[test]
        fn never_overlaps(buffers in prop::collection::vec((0u64..5000, 0u32..40, 0u32..10), 0..60)) {
            let sizes: Vec<u64> = buffers.iter().map(|b| b.0).collect();
            let lives: Vec<(u32, u32)> = buffers.iter().map(|b| (b.1, b.1 + b.2)).collect();
            let total = check(&sizes, &lives);
            prop_assert!(total <= 2 * lower_bound(&sizes, &lives).max(1), "far from the bound");
        }
    }
}
