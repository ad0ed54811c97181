//! Which capabilities this thread has, for messages that name the one that is missing.

use caps::{CapSet, Capability};

/// What attaching the XDP program takes. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON.
const ATTACH: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];
/// What opening AF_XDP sockets takes.
const SOCKET: [Capability; 1] = [Capability::CAP_NET_RAW];

/// Why the kernel said "not permitted" when the program was loaded or attached.
pub(crate) fn explain_attach() -> String {
    explain(&ATTACH)
}

/// Why the kernel said "not permitted" when a socket was opened.
pub(crate) fn explain_socket() -> String {
    explain(&SOCKET)
}

fn explain(needed: &[Capability]) -> String {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    describe(needed, has)
}

fn describe(needed: &[Capability], has: impl Fn(Capability) -> bool) -> String {
    let missing: Vec<String> = needed
        .iter()
        .filter(|capability| {
            let by_admin = **capability == Capability::CAP_BPF && has(Capability::CAP_SYS_ADMIN);
            !has(**capability) && !by_admin
        })
        .map(ToString::to_string)
        .collect();
    if missing.is_empty() {
        "the capabilities are all there, so a container, a security module or the kernel's lockdown \
         forbids it"
            .to_owned()
    } else {
        format!(
            "{} is missing: run as root, or give it with setcap or a systemd unit",
            missing.join(" and ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_capability_is_named() {
        let none = describe(&ATTACH, |_| false);
        assert!(none.starts_with("CAP_BPF and CAP_NET_ADMIN is missing"), "{none}");
        let admin = describe(&ATTACH, |capability| capability == Capability::CAP_SYS_ADMIN);
        assert!(admin.starts_with("CAP_NET_ADMIN is missing"), "{admin}");
        let all = describe(&ATTACH, |_| true);
        assert!(!all.contains("missing"), "{all}");
    }
}
