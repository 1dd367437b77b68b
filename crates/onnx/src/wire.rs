//! Where a protobuf message is damaged: the offset, which the decoder does not tell.

/// The messages that are looked into.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    /// Any other: a list of fields.
    Leaf,
}

impl Message {
    fn field(self, number: u64) -> Option<Message> {
        match (self, number) {
            (Message::Model, 7) => Some(Message::Graph),
            (Message::Graph, 1 | 5 | 11 | 12 | 13) => Some(Message::Leaf), // nodes, initializers, declarations
            (Message::Model | Message::Graph | Message::Leaf, _) => None,
        }
    }
}

/// What is wrong with a `ModelProto` that does not decode, and at which offset; `None` if its fields are well-formed as far as
/// they are looked into.
pub fn damage(bytes: &[u8]) -> Option<(usize, String)> {
    walk(bytes, 0, bytes.len(), Message::Model).err()
}

fn walk(bytes: &[u8], mut at: usize, end: usize, message: Message) -> Result<(), (usize, String)> {
    while at < end {
        let start = at;
        let cut = || (start, "a field is cut off".to_owned());
        let key = varint(bytes, &mut at, end).ok_or_else(cut)?;
        let (number, left) = (key >> 3, |at: usize| (end - at) as u64);
        let length = match key & 7 {
            0 => {
                varint(bytes, &mut at, end).ok_or_else(cut)?;
                0
            }
            1 => 8,
            2 => varint(bytes, &mut at, end).ok_or_else(cut)?,
            5 => 4,
            kind => return Err((start, format!("{kind} is no kind of field"))),
        };
        if length > left(at) {
            return Err((start, format!("a field takes {length} bytes, but only {} are left", left(at))));
        }
        let stop = at + length as usize;
        if key & 7 == 2
            && let Some(inner) = message.field(number)
        {
            walk(bytes, at, stop, inner)?;
        }
        at = stop;
    }
    Ok(())
}

/// A number of at most ten bytes with seven bits each.
fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Option<u64> {
    let mut value = 0;
    for k in 0..10 {
        let byte = *bytes[..end].get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << (7 * k);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn offsets() {
        let check = |bytes: &[u8], at: Option<usize>| assert_eq!(super::damage(bytes).map(|d| d.0), at, "{bytes:?}");
        check(&[], None);
        check(&[8, 7, 18, 2, b'a', b'b'], None);
        check(&[8, 7, 18, 3, b'a', b'b'], Some(2)); // a string that is cut off
        check(&[8, 0x87], Some(0)); // a number
        check(&[8, 7, 11], Some(2)); // groups are not of this format
        check(&[8, 7, 58, 4, 10, 9, 1, 2], Some(4)); // a node that is longer than its graph
    }
}
