//! What a server gives up before it starts: by Landlock files and ports, by seccomp calls of the kernel that it never needs. A hole in what
//! reads foreign bytes then opens nothing else.
//!
//! With Landlock (Linux 5.13, ports from 6.7) it may read files, change those of its state folder alone, start no program, listen at its one port, and
//! connect nowhere but to the store's database. Both bind the calling thread and those that it starts, so this comes before all others.

use std::path::Path;

use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// The newest interface of Landlock that is asked for; older kernels give what they have.
const LANDLOCK: ABI = ABI::V6;

/// What a server still needs.
pub(crate) struct Needs<'a> {
    /// Where it writes.
    pub(crate) state: &'a Path,
    /// Where it listens; none where it was given a socket.
    pub(crate) listens: Option<u16>,
    /// Where it connects to.
    pub(crate) connects: &'a [u16],
}

/// What the kernel has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Files and ports are bound: all, some, or none.
    pub(crate) landlock: &'static str,
    /// Calls are refused.
    pub(crate) seccomp: bool,
}

impl Granted {
    /// Whether all of it holds.
    pub(crate) fn is_whole(self) -> bool {
        self.landlock == "full" && self.seccomp
    }
}

/// Gives up everything but what is needed, in this thread and those that it starts from now on.
///
/// # Errors
/// The kernel's, where it has the means and refuses them.
pub(crate) fn enter(needs: &Needs<'_>) -> Result<Granted> {
    let landlock = bind_files(needs).context("the sandbox (Landlock) cannot be entered")?;
    let seccomp = refuse_calls().is_ok();
    Ok(Granted { landlock, seccomp })
}

fn bind_files(needs: &Needs<'_>) -> Result<&'static str> {
    let everything = AccessFs::from_all(LANDLOCK);
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(everything)?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::Signal)?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rule(PathBeneath::new(PathFd::new(needs.state)?, everything & !AccessFs::Execute))?;
    let listens = needs.listens.iter().map(|port| (*port, AccessNet::BindTcp));
    let connects = needs.connects.iter().map(|port| (*port, AccessNet::ConnectTcp));
    let rules = listens
        .chain(connects)
        .try_fold(rules, |rules, (port, access)| rules.add_rule(NetPort::new(port, access)))?;
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => "full",
        RulesetStatus::PartiallyEnforced => "partial",
        RulesetStatus::NotEnforced => "none",
    })
}

/// Calls that a server never makes: those that start programs, look into other processes, change the system, or are known for holes.
#[rustfmt::skip]
const REFUSED: [libc::c_long; 48] = [
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd, libc::SYS_kcmp, libc::SYS_kexec_load, libc::SYS_kexec_file_load, libc::SYS_init_module, libc::SYS_finit_module,
    libc::SYS_delete_module, libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root,
    libc::SYS_chroot, libc::SYS_move_mount, libc::SYS_open_tree, libc::SYS_fsopen, libc::SYS_fsmount, libc::SYS_fsconfig,
    libc::SYS_fspick, libc::SYS_mount_setattr, libc::SYS_setns, libc::SYS_unshare, libc::SYS_reboot, libc::SYS_swapon,
    libc::SYS_swapoff, libc::SYS_sethostname, libc::SYS_setdomainname, libc::SYS_settimeofday, libc::SYS_clock_settime,
    libc::SYS_clock_adjtime, libc::SYS_adjtimex, libc::SYS_acct, libc::SYS_quotactl, libc::SYS_add_key, libc::SYS_request_key,
    libc::SYS_keyctl, libc::SYS_userfaultfd, libc::SYS_open_by_handle_at, libc::SYS_name_to_handle_at, libc::SYS_personality,
    libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
];

fn refuse_calls() -> Result<()> {
    let rules = REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, refused, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    use deephold_testkit::TempDir;

    use super::*;

    #[test]
    fn what_was_given_up_is_refused_by_the_kernel() {
        let dir = TempDir::new("sandbox");
        let (state, outside) = (dir.join("state"), dir.join("outside"));
        std::fs::create_dir(&state).expect("a folder");
        std::fs::write(&outside, "x").expect("a file");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (open, allowed) =
            (listener.local_addr().expect("an address"), TcpListener::bind("127.0.0.1:0").expect("a port"));
        let allowed_address = allowed.local_addr().expect("an address");
        // In a thread of its own: the rest of the tests keeps what it has.
        let confined = std::thread::spawn(move || {
            let connects = [allowed_address.port()];
            let granted =
                enter(&Needs { state: &state, listens: Some(0), connects: &connects }).expect("entered");
            let denied = |result: std::io::Result<()>, what: &str| match result {
                Err(e) => assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{what}: {e}"),
                Ok(()) => panic!("{what} was granted"),
            };
            std::fs::write(state.join("inside"), "x").expect("its own folder");
            std::fs::rename(state.join("inside"), state.join("moved")).expect("its own folder");
            assert_eq!(std::fs::read(&outside).expect("models lie anywhere"), b"x");
            if granted.landlock != "none" {
                denied(std::fs::write(&outside, "y"), "a foreign file");
                denied(std::fs::write(outside.with_extension("new"), "y"), "a new file elsewhere");
                denied(std::fs::remove_file(&outside), "a removal");
            }
            if granted.landlock == "full" {
                denied(TcpStream::connect(open).map(drop), "a connection");
                TcpStream::connect(allowed_address).expect("the database");
                TcpListener::bind("127.0.0.1:0").expect("its port");
                denied(TcpListener::bind(("127.0.0.1", open.port() ^ 1)).map(drop), "another port");
            }
            if granted.seccomp || granted.landlock != "none" {
                denied(std::process::Command::new("/bin/true").status().map(drop), "a program");
            }
            granted
        });
        let granted = confined.join().expect("confined");
        if !granted.is_whole() {
            deephold_testkit::skip("needs a kernel with Landlock for files and ports (6.7), and seccomp");
        }
        std::fs::write(dir.join("outside"), "z").expect("others are not bound");
    }
}
