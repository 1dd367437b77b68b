//! Runs artifacts for somebody on another computer: the program `infc-worker`, and the messages that both ends speak.
//!
//! A message is a letter, the number of bytes that follow (64 bits, little endian), and these. The worker says `h` and what it is first; then each request is
//! answered: `a` (an artifact, which stays for the requests after it) with `o` and the nodes that run on the host, a line each; `r` (inputs) with `v` (outputs). Values are a list of lengths (64 bits) and bytes
//! as [`Value::encode`] has them. `e` and a text says what went wrong with a request.

use crate::error::{Error, fail};
use crate::{DType, Model, Options, Session, TensorRef, cpu};
use infc_host::{Data, Tensor, Value, dtype};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// The first words of a worker. Both ends must be of the same version: the messages are no interface for others.
pub const HELLO: &str = concat!("infc-worker ", env!("CARGO_PKG_VERSION"));

/// A message.
pub struct Message {
    /// Its letter.
    pub kind: u8,
    /// What it says.
    pub bytes: Vec<u8>,
}

/// Writes a message.
pub fn send(to: &mut impl Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&[kind])?;
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(bytes)?;
    to.flush()
}

/// The next message; `None` at the end.
pub fn receive(from: &mut impl Read) -> io::Result<Option<Message>> {
    let mut head = [0; 9];
    if from.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..])?;
    let length = u64::from_le_bytes(std::array::from_fn(|i| head[1 + i]));
    let mut bytes = vec![];
    // Memory is taken as the bytes come, whatever the length says.
    let read = from.take(length).read_to_end(&mut bytes)?;
    if read as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Message { kind: head[0], bytes }))
}

/// Values as bytes.
pub fn packed(values: impl IntoIterator<Item = Value>) -> Vec<u8> {
    let mut out = vec![];
    for value in values {
        let bytes = value.encode();
        out.extend((bytes.len() as u64).to_le_bytes());
        out.extend(bytes);
    }
    out
}

/// The values in bytes.
pub fn unpacked(mut bytes: &[u8]) -> Result<Vec<Value>, Error> {
    let mut values = vec![];
    while !bytes.is_empty() {
        let length = bytes.get(..8).map(|l| u64::from_le_bytes(std::array::from_fn(|i| l[i])));
        let Some(n) = length.and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= bytes.len() - 8) else {
            fail!(Usage, "values end early");
        };
        match Value::decode(&bytes[8..8 + n]) {
            Ok(value) => values.push(value),
            Err(e) => fail!(Usage, "value {}: {e}", values.len()),
        }
        bytes = &bytes[8 + n..];
    }
    Ok(values)
}

/// Answers requests until there are no more.
pub fn serve(requests: &mut impl Read, answers: &mut impl Write) -> io::Result<()> {
    send(answers, b'h', format!("{HELLO}: {} with {}", cpu::ARCH, cpu::features().join(", ")).as_bytes())?;
    let mut session: Option<Session> = None;
    while let Some(message) = receive(requests)? {
        let answer = match message.kind {
            b'a' => {
                // The memory of the model before is free first.
                session = None;
                Model::from_bytes(&message.bytes).and_then(|model| Session::new(model, Options::default())).map(|new| {
                    let nodes = new.model().program().host_nodes().join("\n");
                    session = Some(new);
                    (b'o', nodes.into_bytes())
                })
            }
            b'r' => match &mut session {
                Some(session) => run(session, &message.bytes).map(|bytes| (b'v', bytes)),
                None => refused("there are inputs, but no artifact before them".to_owned()),
            },
            other => refused(format!("a request of an unknown kind: {other}")),
        };
        match answer {
            Ok((kind, bytes)) => send(answers, kind, &bytes)?,
            Err(e) => send(answers, b'e', e.to_string().as_bytes())?,
        }
    }
    Ok(())
}

fn refused<T>(text: String) -> Result<T, Error> {
    fail!(Usage, "{text}")
}

fn run(session: &mut Session, inputs: &[u8]) -> Result<Vec<u8>, Error> {
    let inputs = unpacked(inputs)?;
    let wanted = session.model().inputs().len();
    if inputs.len() != wanted {
        fail!(Usage, "the model has {wanted} inputs, {} were given", inputs.len());
    }
    for (i, value) in inputs.into_iter().enumerate() {
        let flat = value.as_tensor().filter(|t| t.dtype() != dtype::STRING);
        let Some((tensor, Data::Bytes(bytes))) = flat.map(|t| (t, t.data())) else {
            session.set_value(i, value)?;
            continue;
        };
        let dims: Vec<i64> = tensor.dims().iter().map(|&d| d as i64).collect();
        session.set_input(i, TensorRef { dtype: DType(tensor.dtype()), dims: &dims, bytes })?;
    }
    session.run()?;
    let mut out = vec![];
    let model = Arc::clone(session.model());
    for (i, port) in model.outputs().iter().enumerate() {
        if port.host.is_some() {
            out.push(session.value(i)?.clone());
            continue;
        }
        let t = session.output(i)?;
        let dims = t.dims.iter().map(|&d| d as usize).collect();
        match Tensor::from_bytes(t.dtype.0, dims, t.bytes.to_vec()) {
            Ok(tensor) => out.push(Value::Tensor(tensor)),
            Err(e) => fail!(Run, "output '{}': {e}", port.name),
        }
    }
    Ok(packed(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(requests: &[u8]) -> Vec<(u8, String)> {
        let mut out = vec![];
        serve(&mut &requests[..], &mut out).expect("memory takes all");
        let mut rest = &out[..];
        std::iter::from_fn(|| receive(&mut rest).expect("whole messages"))
            .map(|m| (m.kind, String::from_utf8_lossy(&m.bytes).into_owned()))
            .collect()
    }

    #[test]
    fn a_worker_says_what_it_is_and_what_is_wrong() {
        let mut requests = vec![];
        send(&mut requests, b'r', b"x").expect("memory");
        send(&mut requests, b'a', b"no artifact").expect("memory");
        send(&mut requests, b'?', b"").expect("memory");
        let all = answers(&requests);
        assert!(all[0].0 == b'h' && all[0].1.starts_with(HELLO) && all[0].1.contains(cpu::ARCH), "{all:?}");
        assert!(all[1..].iter().all(|(kind, _)| *kind == b'e') && all.len() == 4, "{all:?}");
        assert!(all[1].1.contains("no artifact before them") && all[3].1.contains("unknown kind: 63"), "{all:?}");
    }

    #[test]
    fn values_come_back_as_they_were() {
        let tensor = Value::Tensor(Tensor::from_ints(vec![2, 2], &[1, -2, 3, 4]).expect("four"));
        let values = vec![tensor.clone(), Value::Sequence(vec![tensor.clone(), tensor]), Value::Optional(None)];
        let bytes = packed(values.clone());
        assert_eq!(unpacked(&bytes).expect("values"), values);
        let text = |bytes: &[u8]| unpacked(bytes).expect_err("wrong").to_string();
        assert!(text(&bytes[..bytes.len() - 1]).contains("values end early") && text(&bytes[..4]).contains("values end early"));
        assert!(text(&u64::MAX.to_le_bytes()).contains("values end early"));
        assert!(text(&[&1u64.to_le_bytes()[..], &[9]].concat()).contains("value 0:"));
    }

    #[test]
    fn a_message_that_ends_early_is_an_error() {
        let mut bytes = vec![];
        send(&mut bytes, b'a', b"four").expect("memory");
        assert!(receive(&mut &bytes[..bytes.len() - 1]).is_err() && receive(&mut &bytes[..3]).is_err());
        let huge = [&b"a"[..], &u64::MAX.to_le_bytes(), b"x"].concat();
        assert!(receive(&mut &huge[..]).is_err());
        assert!(receive(&mut &b""[..]).expect("an end").is_none());
    }
}
