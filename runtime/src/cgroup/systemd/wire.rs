//! D-Bus messages as bytes, as far as talking to systemd needs them. Little-endian, as every machine we build for.
//!
//! Nothing that is read is trusted: lengths are checked against what is there.

/// Kinds of messages.
pub(super) const CALL: u8 = 1;
pub(super) const REPLY: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// A message longer than this is none that systemd would send us.
const LONGEST: usize = 1 << 20;

/// What a property of a unit can be set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cgroup) enum Value {
    Flag(bool),
    Number(u64),
    Text(String),
    Bytes(Vec<u8>),
    Pids(Vec<u32>),
    /// Path or group, access.
    DeviceRules(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Flag(_) => "b",
            Value::Number(_) => "t",
            Value::Text(_) => "s",
            Value::Bytes(_) => "ay",
            Value::Pids(_) => "au",
            Value::DeviceRules(_) => "a(ss)",
        }
    }
}

/// Builds a body, or a header; alignment counts from its start.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn text(&mut self, value: &str) {
        self.u32(value.len() as u32);
        self.bytes.extend(value.as_bytes());
        self.byte(0);
    }

    pub(super) fn signature(&mut self, value: &str) {
        self.byte(value.len() as u8);
        self.bytes.extend(value.as_bytes());
        self.byte(0);
    }

    /// The length that goes first counts neither itself nor the padding before the first element.
    pub(super) fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Writer)) {
        self.u32(0);
        let place = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        elements(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[place..place + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Flag(value) => self.u32((*value).into()),
            Value::Number(value) => self.u64(*value),
            Value::Text(value) => self.text(value),
            Value::Bytes(value) => self.array(1, |writer| writer.bytes.extend(value)),
            Value::Pids(value) => self.array(4, |writer| value.iter().for_each(|pid| writer.u32(*pid))),
            Value::DeviceRules(value) => self.array(8, |writer| {
                for (device, access) in value {
                    writer.align(8);
                    writer.text(device);
                    writer.text(access);
                }
            }),
        }
    }

    /// `a(sv)`: properties by name.
    pub(super) fn properties(&mut self, properties: &[(&str, Value)]) {
        self.array(8, |writer| {
            for (name, value) in properties {
                writer.align(8);
                writer.text(name);
                writer.variant(value);
            }
        });
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Whom a call is for and what it brings.
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    pub(super) signature: &'a str,
    pub(super) body: Vec<u8>,
}

impl Call<'_> {
    pub(super) fn to_bytes(&self, serial: u32) -> Vec<u8> {
        let mut writer = Writer::default();
        for byte in [b'l', CALL, 0, 1] {
            writer.byte(byte);
        }
        writer.u32(self.body.len() as u32);
        writer.u32(serial);
        writer.array(8, |writer| {
            let fields = [
                (1, "o", self.path),
                (2, "s", self.interface),
                (3, "s", self.member),
                (6, "s", self.destination),
            ];
            for (field, kind, value) in fields {
                writer.align(8);
                writer.byte(field);
                writer.signature(kind);
                writer.text(value);
            }
            if !self.signature.is_empty() {
                writer.align(8);
                writer.byte(8);
                writer.signature("g");
                writer.signature(self.signature);
            }
        });
        writer.align(8);
        let mut bytes = writer.into_bytes();
        bytes.extend(&self.body);
        bytes
    }
}

/// A message that came in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) reply_to: u32,
    pub(super) member: String,
    /// Of an error.
    pub(super) name: String,
    pub(super) signature: String,
    pub(super) body: Vec<u8>,
}

/// How long the message is whose first bytes these are. None: too few to tell; an error: no message.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    let mut reader = Reader { bytes, at: 4 };
    if bytes.len() < 16 {
        return Ok(None);
    }
    if bytes[0] != b'l' || bytes[3] != 1 {
        return Err("not little-endian D-Bus of version 1");
    }
    let too_short = "a header that ends too early";
    let body = reader.u32().ok_or(too_short)? as usize;
    reader.at = 12;
    let fields = reader.u32().ok_or(too_short)? as usize;
    if body > LONGEST || fields > LONGEST {
        return Err("a message that is too long");
    }
    Ok(Some((16 + fields).next_multiple_of(8) + body))
}

/// Takes a whole message apart.
pub(super) fn parse(bytes: &[u8]) -> Result<Message, &'static str> {
    try_parse(bytes).ok_or("a message that contradicts itself")
}

fn try_parse(bytes: &[u8]) -> Option<Message> {
    let mut message = Message { kind: *bytes.get(1)?, ..Message::default() };
    let mut reader = Reader { bytes, at: 4 };
    let body = reader.u32()? as usize;
    reader.at = 12;
    let end = 16 + reader.u32()? as usize;
    while reader.at < end {
        reader.align(8);
        let field = reader.byte()?;
        match (field, reader.signature()?.as_str()) {
            (3, "s") => message.member = reader.text()?,
            (4, "s") => message.name = reader.text()?,
            (5, "u") => message.reply_to = reader.u32()?,
            (8, "g") => message.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return None,
        }
    }
    let start = end.next_multiple_of(8);
    message.body = bytes.get(start..start.checked_add(body)?)?.to_vec();
    Some(message)
}

/// Reads a body, or a header; None when it is too short or not what was expected.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.align(4);
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    /// A string or an object path.
    pub(super) fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        self.text_of(length)
    }

    pub(super) fn signature(&mut self) -> Option<String> {
        let length = self.byte()?.into();
        self.text_of(length)
    }

    fn text_of(&mut self, length: usize) -> Option<String> {
        let text = self.take(length)?;
        (self.byte()? == 0).then(|| String::from_utf8_lossy(text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Vec<u8> {
        let mut body = Writer::default();
        body.text("a.scope");
        body.properties(&[
            ("Delegate", Value::Flag(true)),
            ("MemoryMax", Value::Number(7)),
            ("PIDs", Value::Pids(vec![9])),
            ("DeviceAllow", Value::DeviceRules(vec![("char-pts".into(), "rw".into())])),
        ]);
        let call = Call {
            destination: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "SetUnitProperties",
            signature: "sa(sv)",
            body: body.into_bytes(),
        };
        call.to_bytes(3)
    }

    #[test]
    fn what_is_written_can_be_read() {
        let bytes = call();
        assert_eq!(length(&bytes).unwrap(), Some(bytes.len()));
        assert_eq!(length(&bytes[..15]).unwrap(), None);
        let message = parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (CALL, "SetUnitProperties"));
        assert_eq!(message.signature, "sa(sv)");
        assert_eq!(Reader::new(&message.body).text().unwrap(), "a.scope");
    }

    #[test]
    fn values_are_aligned_as_the_specification_says() {
        let mut writer = Writer::default();
        writer.properties(&[("Abc", Value::Number(5))]);
        let expected: &[u8] = &[
            24, 0, 0, 0, 0, 0, 0, 0, // the array's length, then padding to 8 that it doesn't count
            3, 0, 0, 0, b'A', b'b', b'c', 0, 1, b't', 0, 0, 0, 0, 0, 0, // name, signature, padding to 8
            5, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(writer.into_bytes(), expected);
    }

    #[test]
    fn no_cut_and_no_flipped_byte_makes_it_panic() {
        let whole = call();
        for end in 0..whole.len() {
            let _ = length(&whole[..end]);
            let _ = parse(&whole[..end]);
        }
        for index in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[index] = value;
                let _ = length(&bytes);
                let _ = parse(&bytes);
            }
        }
        assert!(length(&[b'B'; 16]).is_err());
    }
}
