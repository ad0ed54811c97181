//! The bench's programs in the kernel: one makes frames, one hands them to a bare receiver.
//!
//! `scripts/build-ebpf` builds them for the BPF target; on any other target this is an empty
//! program, so that `cargo clippy --workspace` reaches it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod pace;

use core::ptr;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::helpers::bpf_xdp_adjust_tail;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, DevMap, PerCpuArray, XskMap};
use aya_ebpf::programs::XdpContext;
use bench_common::{Head, Maker, Recipe};

/// The frames to make ([`bench_common::RECIPE`]).
#[map]
static RECIPE: Array<Recipe> = Array::with_max_entries(1, 0);

/// Each CPU's place in the traffic, its pace and its counters ([`bench_common::MAKER`]).
#[map]
static MAKER: PerCpuArray<Maker> = PerCpuArray::with_max_entries(1, 0);

/// The interface that frames leave by ([`bench_common::OUTLET`]).
#[map]
static OUTLET: DevMap = DevMap::with_max_entries(1, 0);

/// The bare receiver's sockets ([`bench_common::SOCKETS`]); the loader sets the size.
#[map]
static SOCKETS: XskMap = XskMap::with_max_entries(1, 0);

/// Makes one frame when its moment has come, and sends it off.
///
/// The kernel runs it over and over by `BPF_PROG_TEST_RUN` with `BPF_F_TEST_XDP_LIVE_FRAMES`
/// (kernel 5.18), each time on a frame as long as the recipe's longest. A frame is used again once
/// its receiver is done with it, and holds then what it held before: all that differs between
/// frames is written each time.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the attribute's code hands the context over")]
fn generate(ctx: XdpContext) -> u32 {
    let Some(recipe) = RECIPE.get(0) else { return XDP_DROP };
    let Some(maker) = MAKER.get_ptr_mut(0) else { return XDP_DROP };
    // SAFETY: a live map value, aligned to eight bytes by the kernel. The place is this CPU's own,
    // and nothing else runs this program on it meanwhile: the kernel's test loop does not nest.
    let maker = unsafe { &mut *maker };
    if !pace::wait(maker) {
        return XDP_DROP;
    }
    let bytes = recipe.frame_bytes(&maker.walk);
    if bytes != recipe.longest {
        // SAFETY: the context is the one the kernel called us with, and nothing that we know of
        // the frame's bounds is kept across the call.
        let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, bytes as i32 - recipe.longest as i32) };
        if cut != 0 {
            maker.made.misshapen += 1;
            return XDP_ABORTED;
        }
    }
    if ctx.data() + Head::LEN > ctx.data_end() {
        maker.made.misshapen += 1;
        return XDP_ABORTED;
    }
    // SAFETY: so many bytes of the frame are there, by the check above, and belong to this run of
    // the program alone. A Head is nothing but bytes.
    let head = unsafe { &mut *ptr::with_exposed_provenance_mut::<Head>(ctx.data()) };
    recipe.write(&maker.walk, head);
    maker.walk.step(recipe);
    match OUTLET.redirect(0, u64::from(XDP_ABORTED)) {
        Ok(_) => {
            maker.made.frames += 1;
            maker.made.bytes += u64::from(bytes);
            XDP_REDIRECT
        }
        Err(_) => {
            maker.made.refused += 1;
            XDP_ABORTED
        }
    }
}

/// Hands every frame to the socket of its queue, and does nothing else: the least that a sensor
/// on AF_XDP costs.
#[xdp(frags)]
#[expect(clippy::needless_pass_by_value, reason = "the attribute's code hands the context over")]
fn discard(ctx: XdpContext) -> u32 {
    SOCKETS.redirect(ctx.rx_queue_index(), u64::from(XDP_PASS)).unwrap_or(XDP_PASS)
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing in the programs panics; the language wants a handler.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    println!("These programs run in the kernel: scripts/build-ebpf builds them.");
}
