//! The bench's programs in the kernel, as `scripts/build-ebpf` made them.

use std::borrow::Cow;

use anyhow::{Context, Result};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/object/bench.bpf.o");

/// Names another object: `scripts/build-ebpf --check` has the one of another toolchain tried.
const OTHER: &str = "STILLWIRE_BENCH_OBJECT";

/// The object to load.
pub(super) fn bytes() -> Result<Cow<'static, [u8]>> {
    match std::env::var_os(OTHER) {
        Some(path) => {
            let bytes =
                std::fs::read(&path).with_context(|| format!("reading {path:?} ({OTHER})"))?;
            Ok(Cow::Owned(bytes))
        }
        None => Ok(Cow::Borrowed(OBJECT)),
    }
}
