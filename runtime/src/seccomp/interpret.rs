//! For tests: runs a program as the kernel would, without installing it.

use super::Program;

/// `AUDIT_ARCH_*` of the architectures that an x86-64 kernel runs.
pub(super) const X86_64: u32 = 0xc000_003e;
pub(super) const I386: u32 = 0x4000_0003;
/// The bit that marks an x32 call number; the architecture is `X86_64`.
pub(super) const X32: i64 = 0x4000_0000;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    Errno(u32),
    KillThread,
    KillProcess,
    Other(u32),
}

pub(super) fn run(program: &Program, arch: u32, call: i64, arguments: &[u64]) -> Verdict {
    // struct seccomp_data: number, architecture, instruction pointer, six arguments.
    let mut data = [0u32; 16];
    data[0] = call as u32;
    data[1] = arch;
    for (index, argument) in arguments.iter().enumerate() {
        data[4 + 2 * index] = *argument as u32;
        data[5 + 2 * index] = (*argument >> 32) as u32;
    }
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let instruction = program.instructions()[at];
        let k = instruction.k;
        at += 1;
        let mut branch =
            |condition: bool| at += usize::from(if condition { instruction.jt } else { instruction.jf });
        match instruction.code {
            0x20 => accumulator = data[k as usize / 4],
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x45 => branch(accumulator & k != 0),
            0x06 => {
                return match k & 0xffff_0000 {
                    0x7fff_0000 => Verdict::Allow,
                    0x0005_0000 => Verdict::Errno(k & 0xffff),
                    0x0000_0000 => Verdict::KillThread,
                    0x8000_0000 => Verdict::KillProcess,
                    _ => Verdict::Other(k),
                };
            }
            code => panic!("unexpected instruction {code:#x}"),
        }
    }
}
