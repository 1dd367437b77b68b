//! The bytes of a program's constants, without a copy of them: tensors at offsets, and zeros between.

use infc_artifact::abi::place_constant;
use infc_ir::Tensor;
use std::hash::Hasher;

/// What equal bytes have in common: a hash of some of them, and how many there are. Those of large constants are not read in full for it, since those that share a key are compared.
pub fn key(bytes: &[u8]) -> (u64, usize) {
    const BLOCK: usize = 256;
    const BLOCKS: usize = 256;
    let mut hasher = std::hash::DefaultHasher::new();
    if bytes.len() <= 2 * BLOCK * BLOCKS {
        hasher.write(bytes);
    } else {
        let step = (bytes.len() - BLOCK) / (BLOCKS - 1);
        (0..BLOCKS).for_each(|k| hasher.write(&bytes[k * step..][..BLOCK]));
    }
    (hasher.finish(), bytes.len())
}

/// Constants at the offsets that a program names. What they are made of is shared with whoever has it too.
#[derive(Clone, Debug, Default)]
pub struct Constants {
    /// By their offsets.
    pieces: Vec<(usize, Tensor)>,
    len: usize,
}

impl Constants {
    /// Bytes of all of them, those between them included.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Adds one where the machine reads it best; its offset.
    pub fn push(&mut self, t: &Tensor) -> u64 {
        self.put(place_constant(self.len, t.bytes().len()), t)
    }
    /// Adds one right behind the others.
    pub(super) fn append(&mut self, t: &Tensor) -> u64 {
        self.put(self.len, t)
    }
    fn put(&mut self, at: usize, t: &Tensor) -> u64 {
        self.len = at + t.bytes().len();
        self.pieces.push((at, t.clone()));
        at as u64
    }
    /// The constant at an offset, which begins with that byte.
    pub fn at(&self, offset: u64) -> &Tensor {
        // Those without bytes have the offset of the one behind them.
        let end = self.pieces.partition_point(|p| p.0 <= offset as usize);
        let found = self.pieces[..end].last().filter(|p| p.0 == offset as usize);
        &found.expect("a program names offsets of constants").1
    }
    /// Its first bytes.
    pub fn bytes(&self, offset: u64, length: usize) -> &[u8] {
        if length == 0 { &[] } else { &self.at(offset).bytes()[..length] }
    }
    /// All bytes in pieces, one after the other without gaps.
    pub fn pieces(&self) -> Vec<&[u8]> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let (mut all, mut written) = (vec![], 0);
        for (at, t) in &self.pieces {
            while written < *at {
                let gap = (at - written).min(ZEROS.len());
                all.push(&ZEROS[..gap]);
                written += gap;
            }
            all.push(t.bytes());
            written += t.bytes().len();
        }
        all
    }
    /// All bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces().concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_where_they_are_said_to_be() {
        let mut all = Constants::default();
        let tensors: Vec<Tensor> =
            [3, 0, 70, 1 << 21, 1].map(|n| Tensor::from_vec([n], (0..n).map(|i| i as u8 | 1).collect())).into();
        let mut offsets: Vec<u64> = tensors.iter().map(|t| all.push(t)).collect();
        offsets.push(all.append(&tensors[0]));
        let bytes = all.to_vec();
        assert_eq!((bytes.len(), all.is_empty()), (all.len(), false));
        for (&at, t) in offsets.iter().zip(tensors.iter().chain([&tensors[0]])) {
            assert_eq!(&bytes[at as usize..][..t.bytes().len()], t.bytes());
            assert_eq!(all.bytes(at, t.bytes().len()), t.bytes());
        }
        let between: usize = bytes.iter().filter(|b| **b == 0).count();
        assert_eq!(between, bytes.len() - tensors.iter().map(|t| t.bytes().len()).sum::<usize>() - 3);
        assert!(Constants::default().is_empty() && Constants::default().to_vec().is_empty());
    }
}
