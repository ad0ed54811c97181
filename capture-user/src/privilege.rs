//! Which capabilities this thread has, for messages that name the one that is missing.

use caps::{CapSet, Capability};

/// What loading and attaching the XDP program takes. Without CAP_PERFMON the kernel's verifier
/// treats the program as one of an untrusted user and refuses how it walks through its counters.
const ATTACH: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN];
/// What opening AF_XDP sockets takes.
const SOCKET: [Capability; 1] = [Capability::CAP_NET_RAW];
/// CAP_SYS_ADMIN includes these.
const OF_ADMIN: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_PERFMON];

/// The capabilities that are missing for loading and attaching the program, if any, and what to do.
pub(crate) fn missing_to_attach() -> Option<String> {
    missing(&ATTACH, effective)
}

/// Why the kernel said "not permitted" when the program was loaded or attached.
pub(crate) fn explain_attach() -> String {
    missing_to_attach().unwrap_or_else(forbidden)
}

/// Why the kernel said "not permitted" when a socket was opened.
pub(crate) fn explain_socket() -> String {
    missing(&SOCKET, effective).unwrap_or_else(forbidden)
}

fn effective(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

fn forbidden() -> String {
    "the capabilities are all there, so a container, a security module or the kernel's lockdown \
     forbids it"
        .to_owned()
}

fn missing(needed: &[Capability], has: impl Fn(Capability) -> bool) -> Option<String> {
    let missing: Vec<String> = needed
        .iter()
        .copied()
        .filter(|needed| {
            let included = OF_ADMIN.contains(needed) && has(Capability::CAP_SYS_ADMIN);
            !has(*needed) && !included
        })
        .map(|capability| capability.to_string())
        .collect();
    let (last, others) = missing.split_last()?;
    let (names, verb) = if others.is_empty() {
        (last.clone(), "is")
    } else {
        (format!("{} and {last}", others.join(", ")), "are")
    };
    Some(format!(
        "{names} {verb} missing (run as root, or give the capability by setcap or a systemd unit)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_capability_is_named() {
        let none = missing(&ATTACH, |_| false).unwrap();
        assert!(none.starts_with("CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are missing"), "{none}");
        let admin = missing(&ATTACH, |capability| capability == Capability::CAP_SYS_ADMIN).unwrap();
        assert!(admin.starts_with("CAP_NET_ADMIN is missing"), "{admin}");
        assert_eq!(missing(&ATTACH, |_| true), None);
    }
}
