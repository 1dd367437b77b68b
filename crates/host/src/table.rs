//! Tables from keys to values.

use crate::Fault;
use crate::fault::fault;
use crate::tensor::{Tensor, dtype};
use crate::value::{Inputs, Key, Value, tensor};
use std::collections::HashMap;

/// A table; one value more than keys stands for what is not in it.
#[derive(Clone, Debug)]
pub struct Table {
    keys: Tensor,
    values: Tensor,
    /// The first place of each key.
    places: HashMap<Key, usize>,
}

/// Elements as keys: strings, or the integers they are.
pub(crate) fn keys(t: &Tensor) -> Result<Vec<Key>, Fault> {
    if t.dtype() == dtype::STRING {
        return Ok(t.strings().iter().cloned().map(Key::Text).collect());
    }
    Ok(t.ints()?.into_iter().map(Key::Int).collect())
}

impl Table {
    /// From keys and values, of which the last is the default.
    pub fn new(keys: Tensor, values: Tensor) -> Result<Table, Fault> {
        if values.len() != keys.len() + 1 {
            return Err(fault!("{} keys for {} values with a default", keys.len(), values.len()));
        }
        let mut places = HashMap::new();
        for (i, k) in self::keys(&keys)?.into_iter().enumerate() {
            places.entry(k).or_insert(i);
        }
        Ok(Table { keys, values, places })
    }
    /// Its keys.
    pub fn keys(&self) -> &Tensor {
        &self.keys
    }
    /// Its values.
    pub fn values(&self) -> &Tensor {
        &self.values
    }
    /// The value of each element of operand 0.
    pub(crate) fn look_up(&self, inputs: Inputs) -> Result<Value, Fault> {
        let t = tensor(inputs, 0)?;
        let found = keys(t)?.into_iter().map(|k| self.places.get(&k).copied().unwrap_or(self.keys.len())).collect::<Vec<_>>();
        Ok(self.values.pick(t.dims().to_vec(), found.into_iter())?.into())
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Table) -> bool {
        self.keys == other.keys && self.values == other.values
    }
}
