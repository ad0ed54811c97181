//! The XDP program: stamp, count, steer.
//!
//! It runs in the kernel for every frame that arrives on a captured interface, and every frame
//! leaves it with exactly one outcome counted. `scripts/build-ebpf` builds it for the BPF target;
//! on any other target it is an empty program, so that `cargo clippy --workspace` reaches it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod maps;
mod stamp;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::helpers::bpf_xdp_get_buff_len;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

/// The verdict: to the socket of the frame's receive queue, or on to the host if there is none.
///
/// `frags`: a program that cannot take frames of several buffers is refused on an interface with
/// a large MTU.
#[xdp(frags)]
#[expect(clippy::needless_pass_by_value, reason = "the attribute's code hands the context over")]
fn stillwire(ctx: XdpContext) -> u32 {
    let queue = ctx.rx_queue_index();
    let Some(counters) = maps::counters(queue) else {
        // Cannot happen, the place is always there; the verifier wants the question asked.
        return XDP_ABORTED;
    };
    counters.seen += 1;
    // SAFETY: the helper only reads the context, which is the one the kernel called us with.
    // Unlike data_end - data it counts the fragments of a multi-buffer frame too.
    counters.seen_bytes += unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
    // Pass rules will go here: `passed` is theirs.
    match maps::SOCKETS.redirect(queue, u64::from(XDP_PASS)) {
        Ok(_) => {
            // Only now, so that a frame which goes to the host is left as it came. The redirect
            // has noted the socket and has not looked at the frame yet.
            if !stamp::write(&ctx, queue) {
                counters.unstamped += 1;
            }
            counters.steered += 1;
            XDP_REDIRECT
        }
        Err(XDP_PASS) => {
            counters.no_socket += 1;
            XDP_PASS
        }
        Err(_) => {
            counters.aborted += 1;
            XDP_ABORTED
        }
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing in the program panics; the language wants a handler.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    println!("This program runs in the kernel: scripts/build-ebpf builds it.");
}
