//! From a profile of the OCI specification to a program, by libseccomp.
//!
//! One filter serves several architectures, so that a 32-bit program is judged by its own call numbers. Calls that
//! are newer than everything the profile names are answered with "no such call", for a C library to fall back.

use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::program::Instruction;
use super::{Error, Program};

/// Compiles `profile`. Names that no architecture of it knows are passed over, as the specification has it.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, Error> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(library("make a filter"))?;
    // A tree rather than a list of comparisons: the program runs at each call of the container.
    filter.set_ctl_optimize(2).map_err(library("choose the program's form"))?;
    for arch in profile.architectures().iter().flatten() {
        filter.add_arch(architecture(*arch)).map_err(library(&format!("add the architecture {arch:?}")))?;
    }
    let mut newest = 0;
    for rule in profile.syscalls().iter().flatten() {
        newest = newest.max(add(&mut filter, default, rule)?);
    }
    let program = export(&filter)?;
    match default {
        ScmpAction::Errno(code) if code != libc::ENOSYS && newest > 0 => {
            Ok(program.preceded_by(unknown_after(newest)))
        }
        _ => Ok(program),
    }
}

/// Adds a rule and returns the highest native call number it names.
fn add(filter: &mut ScmpFilterContext, default: ScmpAction, rule: &LinuxSyscall) -> Result<i32, Error> {
    let action = action(rule.action(), rule.errno_ret())?;
    let conditions = rule.args().iter().flatten().map(condition).collect::<Vec<_>>();
    let indices = rule.args().iter().flatten().map(LinuxSeccompArg::index).collect::<Vec<_>>();
    // libseccomp takes one condition an argument. Several on one mean alternatives, as every runtime reads them.
    let alternatives = (1..indices.len()).any(|end| indices[..end].contains(&indices[end]));
    let mut newest = 0;
    for name in rule.names() {
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        newest = newest.max(call.into());
        if action == default {
            continue;
        }
        let failed = |source| library(&format!("add a rule for {name}"))(source);
        if alternatives {
            for condition in &conditions {
                filter.add_rule_conditional(action, call, &[*condition]).map_err(failed)?;
            }
        } else {
            filter.add_rule_conditional(action, call, &conditions).map_err(failed)?;
        }
    }
    Ok(newest)
}

fn export(filter: &ScmpFilterContext) -> Result<Program, Error> {
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = std::fs::File::from(memory.map_err(|errno| Error::Export(errno.into()))?);
    filter.export_bpf(&file).map_err(library("export the program"))?;
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(Error::Export)?;
    Program::from_bytes(&bytes)
}

/// Answers ENOSYS to numbers above `newest`. Numbers are common to all architectures since Linux 5.1 (424), which is
/// far below any `newest` of use; x32's, which have bit 30 set, are left to the rules.
fn unknown_after(newest: i32) -> Vec<Instruction> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const JUMP_FROM: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const X32_BIT: u32 = 0x4000_0000;
    if newest < 424 {
        return Vec::new();
    }
    let errno = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    vec![
        // The number is the first word of struct seccomp_data.
        Instruction { code: LOAD_WORD, jt: 0, jf: 0, k: 0 },
        Instruction { code: JUMP_FROM, jt: 2, jf: 0, k: X32_BIT },
        Instruction { code: JUMP_ABOVE, jt: 0, jf: 1, k: newest as u32 },
        Instruction { code: RETURN, jt: 0, jf: 0, k: errno },
    ]
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, Error> {
    let takes_errno = matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace);
    if errno.is_some() && !takes_errno {
        return Err(Error::Profile { reason: format!("{action} takes no errno") });
    }
    let number = |default: i32| errno.map_or(default, |errno| errno as i32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number(libc::EPERM)),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number(libc::EPERM) as u16),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

fn condition(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let value = argument.value();
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(value), argument.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(argument.index() as u32, operator, datum)
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

fn library(step: &str) -> impl Fn(libseccomp::error::SeccompError) -> Error + use<> {
    let step = step.to_owned();
    move |source| Error::Library { step: step.clone(), source }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::collections::HashSet;

    use oci_spec::runtime::Capability;

    use super::*;
    use crate::seccomp::default_profile;
    use crate::seccomp::interpret::{I386, Verdict, X32, X86_64, run};

    fn default(capabilities: &[Capability]) -> Program {
        compile(&default_profile(&capabilities.iter().copied().collect::<HashSet<_>>())).unwrap()
    }

    const EPERM: Verdict = Verdict::Errno(libc::EPERM as u32);
    const ENOSYS: Verdict = Verdict::Errno(libc::ENOSYS as u32);

    #[test]
    fn ordinary_calls_pass_and_dangerous_ones_are_not_permitted() {
        let program = default(&[]);
        for call in [libc::SYS_read, libc::SYS_openat, libc::SYS_execve, libc::SYS_futex, libc::SYS_accept4] {
            assert_eq!(run(&program, X86_64, call, &[]), Verdict::Allow, "{call}");
        }
        for call in
            [libc::SYS_mount, libc::SYS_io_uring_setup, libc::SYS_keyctl, libc::SYS_bpf, libc::SYS_unshare]
        {
            assert_eq!(run(&program, X86_64, call, &[]), EPERM, "{call}");
        }
    }

    #[test]
    fn families_38_and_40_have_no_sockets() {
        let program = default(&[]);
        for (family, verdict) in [
            (1, Verdict::Allow),
            (2, Verdict::Allow),
            (16, Verdict::Allow),
            (38, EPERM),
            (39, Verdict::Allow),
            (40, EPERM),
            (44, Verdict::Allow),
        ] {
            assert_eq!(run(&program, X86_64, libc::SYS_socket, &[family]), verdict, "family {family}");
            // i386 has the call at 359.
            assert_eq!(run(&program, I386, 359, &[family]), verdict, "family {family} on i386");
        }
        // The multiplexer (102) hides the family behind a pointer.
        for sub_call in 1..20 {
            assert_eq!(run(&program, I386, 102, &[sub_call]), ENOSYS, "socketcall({sub_call})");
        }
    }

    #[test]
    fn namespaces_need_the_capability() {
        let unprivileged = default(&[]);
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
        assert_eq!(run(&unprivileged, X86_64, libc::SYS_clone, &[thread]), Verdict::Allow);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP] {
            assert_eq!(run(&unprivileged, X86_64, libc::SYS_clone, &[flag as u64 | thread]), EPERM);
        }
        assert_eq!(run(&unprivileged, X86_64, libc::SYS_clone3, &[]), ENOSYS);
        let admin = default(&[Capability::SysAdmin]);
        for call in [libc::SYS_clone3, libc::SYS_unshare, libc::SYS_mount] {
            assert_eq!(run(&admin, X86_64, call, &[]), Verdict::Allow);
        }
        assert_eq!(run(&admin, X86_64, libc::SYS_clone, &[libc::CLONE_NEWNS as u64]), Verdict::Allow);
    }

    #[test]
    fn personality_is_restricted_to_harmless_ones() {
        let program = default(&[]);
        for (value, verdict) in
            [(0, Verdict::Allow), (0xffff_ffff, Verdict::Allow), (0x40000, EPERM), (0x8, Verdict::Allow)]
        {
            assert_eq!(run(&program, X86_64, libc::SYS_personality, &[value]), verdict, "{value:#x}");
        }
    }

    #[test]
    fn other_abis_are_judged_by_their_own_numbers() {
        let program = default(&[]);
        // 3 is read on i386, 21 is mount there and access here.
        assert_eq!(run(&program, I386, 3, &[]), Verdict::Allow);
        assert_eq!(run(&program, I386, 21, &[]), EPERM);
        assert_eq!(run(&program, X86_64, X32, &[]), Verdict::Allow, "read by the x32 number");
    }

    #[test]
    fn calls_newer_than_the_profile_do_not_exist() {
        let program = default(&[]);
        assert_eq!(run(&program, X86_64, 900, &[]), ENOSYS);
        assert_eq!(run(&program, I386, 900, &[]), ENOSYS);
    }

    #[test]
    fn profiles_of_others_compile() {
        let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
            {"names":["mkdir","no_such_call"],"action":"SCMP_ACT_ERRNO","errnoRet":5},
            {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS","args":[
                {"index":1,"value":9,"op":"SCMP_CMP_EQ"},{"index":1,"value":15,"op":"SCMP_CMP_EQ"}]}]}"#;
        let program = compile(&serde_json::from_str(profile).unwrap()).unwrap();
        assert_eq!(run(&program, X86_64, libc::SYS_mkdir, &[]), Verdict::Errno(5));
        assert_eq!(run(&program, X86_64, libc::SYS_kill, &[1, 15]), Verdict::KillProcess);
        assert_eq!(run(&program, X86_64, libc::SYS_kill, &[1, 10]), Verdict::Allow);
        assert_eq!(run(&program, X86_64, 900, &[]), Verdict::Allow);
    }

    #[test]
    fn errno_of_an_action_that_has_none_is_refused() {
        for (action, accepted) in [("ERRNO", true), ("TRACE", true), ("ALLOW", false), ("KILL", false)] {
            let profile = format!(r#"{{"defaultAction":"SCMP_ACT_{action}","defaultErrnoRet":5}}"#);
            let compiled = compile(&serde_json::from_str(&profile).unwrap());
            assert_eq!(compiled.is_ok(), accepted, "{action}");
        }
    }
}
