//! The index of an open segment: its journal's notes, looked through.

use std::collections::BTreeMap;

use capture_flow::key::FlowHash;

use crate::journal::Notes;

use super::Postings;

/// Where the frames of each of these sessions are. `flows` ascends.
pub(super) fn walk(notes: &Notes, flows: &[FlowHash]) -> BTreeMap<FlowHash, Postings> {
    let mut all: BTreeMap<FlowHash, Postings> = BTreeMap::new();
    let is_wanted = |flow: &FlowHash| flows.binary_search(flow).is_ok();
    let slots: Vec<Option<FlowHash>> =
        notes.flows.iter().map(|slot| slot.filter(is_wanted)).collect();
    for (slot, offset) in &notes.entries {
        if let Some(Some(flow)) = slots.get(*slot as usize) {
            all.entry(*flow).or_default().offsets.push(*offset);
        }
    }
    for (flow, at) in notes.foreign.iter().filter(|(flow, _)| is_wanted(flow)) {
        all.entry(*flow).or_default().foreign.push(*at);
    }
    for postings in all.values_mut() {
        postings.offsets.sort_unstable();
        postings.offsets.dedup();
        postings.foreign.sort_unstable();
        postings.foreign.dedup();
    }
    all
}

/// Where the frames of a session are.
pub(super) fn postings(notes: &Notes, flow: FlowHash) -> Postings {
    let is_ours = |slot: u32| notes.flows.get(slot as usize) == Some(&Some(flow));
    let mut offsets = Vec::new();
    if notes.flows.contains(&Some(flow)) {
        let ours = notes.entries.iter().filter(|(slot, _)| is_ours(*slot));
        offsets = ours.map(|(_, offset)| *offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
    }
    let mut foreign: Vec<_> =
        notes.foreign.iter().filter(|(hash, _)| *hash == flow).map(|(_, at)| *at).collect();
    foreign.sort_unstable();
    foreign.dedup();
    Postings { offsets, foreign }
}
