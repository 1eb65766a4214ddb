//! A compiled filter: classic BPF instructions, as bytes in the machine's own order.

use super::Error;

/// A filter ready for the kernel.
#[derive(Clone, PartialEq, Eq)]
pub struct Program(Vec<Instruction>);

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

impl Instruction {
    const SIZE: usize = 8;

    fn from_bytes(bytes: &[u8; Instruction::SIZE]) -> Instruction {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = *bytes;
        Instruction { code: u16::from_ne_bytes([c0, c1]), jt, jf, k: u32::from_ne_bytes([k0, k1, k2, k3]) }
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({} instructions)", self.0.len())
    }
}

impl Program {
    /// The kernel takes no longer one (`BPF_MAXINSNS`).
    const MAX: usize = 4096;

    /// The instructions in the layout of `struct sock_filter`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = |i: &Instruction| {
            let ([c0, c1], [k0, k1, k2, k3]) = (i.code.to_ne_bytes(), i.k.to_ne_bytes());
            [c0, c1, i.jt, i.jf, k0, k1, k2, k3]
        };
        self.0.iter().flat_map(bytes).collect()
    }

    /// The reverse of `to_bytes`. Whether the program makes sense is for the kernel's checker to say.
    pub fn from_bytes(bytes: &[u8]) -> Result<Program, Error> {
        let failed = |reason| Err(Error::Program { length: bytes.len(), reason });
        let (instructions, rest) = bytes.as_chunks();
        match instructions.len() {
            _ if !rest.is_empty() => failed("not a whole number of instructions"),
            0 => failed("empty"),
            length if length > Program::MAX => failed("longer than the kernel takes"),
            _ => Ok(Program(instructions.iter().map(Instruction::from_bytes).collect())),
        }
    }

    #[cfg(test)]
    pub(super) fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// The program with `first` run before it; jumps are relative and stay right.
    pub(super) fn preceded_by(mut self, first: Vec<Instruction>) -> Program {
        self.0.splice(0..0, first);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        let bytes: Vec<u8> = (0..64).collect();
        let program = Program::from_bytes(&bytes).unwrap();
        assert_eq!(program.to_bytes(), bytes);
        assert_eq!(program.instructions().len(), 8);
    }

    #[test]
    fn bytes_that_are_no_program_are_refused() {
        for bad in [vec![], vec![0; 7], vec![0; 8 * 4097]] {
            assert!(Program::from_bytes(&bad).is_err(), "{} bytes", bad.len());
        }
    }
}
