//! Device memory: allocations far apart from each other, so that an address tells which one it is in.

/// Distance of allocations.
const STEP: u32 = 36;

/// The memory of a device.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    slots: Vec<Option<Vec<u8>>>,
}

impl Memory {
    /// Makes an allocation of these bytes; gives its address, which is a multiple of 256.
    pub fn insert(&mut self, bytes: Vec<u8>) -> u64 {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if free == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[free] = Some(bytes);
        (free as u64 + 1) << STEP
    }
    /// Ends the allocation at this address and gives its bytes.
    pub fn remove(&mut self, address: u64) -> Option<Vec<u8>> {
        let slot = (address >> STEP).checked_sub(1)?;
        if address & ((1 << STEP) - 1) != 0 {
            return None;
        }
        self.slots.get_mut(slot as usize)?.take()
    }
    /// Bytes in all allocations.
    pub fn used(&self) -> u64 {
        self.slots.iter().flatten().map(|s| s.len() as u64).sum()
    }
    /// `len` bytes at an address, if they lie in one allocation.
    pub fn get(&self, address: u64, len: usize) -> Option<&[u8]> {
        let slot = (address >> STEP).checked_sub(1)?;
        let at = (address & ((1 << STEP) - 1)) as usize;
        self.slots.get(slot as usize)?.as_ref()?.get(at..at.checked_add(len)?)
    }
    /// The same, to write.
    pub fn get_mut(&mut self, address: u64, len: usize) -> Option<&mut [u8]> {
        let slot = (address >> STEP).checked_sub(1)?;
        let at = (address & ((1 << STEP) - 1)) as usize;
        self.slots.get_mut(slot as usize)?.as_mut()?.get_mut(at..at.checked_add(len)?)
    }
    /// Says what is wrong with an address.
    pub(crate) fn describe(&self, address: u64, len: usize) -> String {
        let at = address & ((1 << STEP) - 1);
        let slot = (address >> STEP).checked_sub(1).and_then(|s| self.slots.get(s as usize)?.as_ref());
        match slot {
            Some(bytes) => format!("{len} bytes at offset {at} of an allocation of {} bytes", bytes.len()),
            None => format!("{len} bytes at {address:#x}, where no memory is"),
        }
    }
}
