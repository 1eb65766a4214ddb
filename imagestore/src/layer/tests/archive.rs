//! Archives made byte by byte, so that they can be wrong in every way.

/// A tar under construction.
#[derive(Clone, Default)]
pub(crate) struct Archive(Vec<u8>);

/// One header and its data, a plain file of root's unless told otherwise.
#[derive(Clone)]
pub(crate) struct Item {
    pub(crate) kind: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) data: Vec<u8>,
    /// What the size field says, when it is not the length of the data.
    pub(crate) size: Option<u64>,
}

impl Item {
    pub(crate) fn new(kind: u8, name: impl AsRef<[u8]>) -> Item {
        Item {
            kind,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            device: (0, 0),
            data: Vec::new(),
            size: None,
        }
    }

    pub(crate) fn file(name: &str, data: &[u8]) -> Item {
        Item { data: data.to_vec(), ..Item::new(b'0', name) }
    }

    pub(crate) fn directory(name: &str) -> Item {
        Item { mode: 0o755, ..Item::new(b'5', name) }
    }

    pub(crate) fn symlink(name: &str, target: &str) -> Item {
        Item { link: target.into(), mode: 0o777, ..Item::new(b'2', name) }
    }

    pub(crate) fn hard_link(name: &str, target: &str) -> Item {
        Item { link: target.into(), ..Item::new(b'1', name) }
    }

    pub(crate) fn device(name: &str, major: u32, minor: u32) -> Item {
        Item { device: (major, minor), ..Item::new(b'3', name) }
    }

    pub(crate) fn mode(self, mode: u32) -> Item {
        Item { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> Item {
        Item { uid, gid, ..self }
    }

    pub(crate) fn mtime(self, mtime: u64) -> Item {
        Item { mtime, ..self }
    }

    fn header(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, field: &[u8]| block[at..at + field.len()].copy_from_slice(field);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.uid & 0o7_777_777).as_bytes());
        put(116, format!("{:07o}", self.gid & 0o7_777_777).as_bytes());
        put(124, format!("{:011o}", self.size.unwrap_or(self.data.len() as u64)).as_bytes());
        put(136, format!("{:011o}", self.mtime).as_bytes());
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", self.device.0).as_bytes());
        put(337, format!("{:07o}", self.device.1).as_bytes());
        seal(&mut block);
        block
    }
}

/// Writes the checksum that fits.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

impl Archive {
    pub(crate) fn new() -> Archive {
        Archive::default()
    }

    /// Adds a header and its data, and a long name before it where it needs one.
    pub(crate) fn add(mut self, item: Item) -> Archive {
        if item.name.len() > 100 {
            self = self.long(b'L', &String::from_utf8_lossy(&item.name));
        }
        self.0.extend_from_slice(&item.header());
        self.0.extend_from_slice(&item.data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// An extended header for the next item.
    pub(crate) fn pax(self, records: &[(&str, &str)]) -> Archive {
        self.extended(b'x', records)
    }

    pub(crate) fn extended(self, kind: u8, records: &[(&str, &str)]) -> Archive {
        let mut data = String::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            data.push_str(&format!("{length} {key}={value}\n"));
        }
        self.add(Item { data: data.into_bytes(), ..Item::new(kind, "PaxHeaders/x") })
    }

    /// A long name (`L`) or long link target (`K`) for the next item.
    pub(crate) fn long(self, kind: u8, name: &str) -> Archive {
        self.add(Item { data: [name.as_bytes(), b"\0"].concat(), ..Item::new(kind, "././@LongLink") })
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Archive {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Without the mark of the end.
    pub(crate) fn unfinished(&self) -> Vec<u8> {
        self.0.clone()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}
