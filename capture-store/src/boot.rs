//! The kernel's name for the time since the machine was started.

/// The boot id of this machine, as the kernel writes it; `None` where it does not tell.
pub(crate) fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}
