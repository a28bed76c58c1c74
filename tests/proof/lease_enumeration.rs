//! Observations under a Lease: families of choices gone through completely, and a sweep over all of them at once.

use podgres::core::decision::Memory;
use podgres::core::observation::Observation;
use podgres::core::policy::Policy;

use crate::lease_worlds::{Choice, Of, SIZES, lease_policy, observed, remembered};

/// Points of the sweep over the product of all choices, if `PODGRES_LEASE_SWEEP` does not ask for more.
const SWEEP: u64 = 100_000;

pub(crate) type Visit<'a> = &'a mut dyn FnMut(&Choice, &Policy, &Memory, &Observation);

/// Everything below.
pub(crate) fn each(visit: Visit<'_>) {
    use Of::{
        Age, Blind, Bound, Condemned, Confirmed, Directory, Down, Durability, HandingOver, Held, Holder,
        HolderPeer, Identifier, Incarnation, Job, Licence, Me, MemberRequest, Paused, Peers, Postmaster,
        Promised, Renewal, Request, Server, Set, Stopping, ThirdPeer, Told, Upstream, Wishes, Write,
    };
    let usual = Choice::usual();
    let detached = usual.with(Postmaster, 6).with(Server, 4).with(HolderPeer, 4);
    // Suspect, detach, compare, claim.
    family(
        visit,
        usual.with(HolderPeer, 4),
        &[Holder, Age, Promised, Set, Durability, ThirdPeer],
    );
    family(
        visit,
        detached,
        &[Holder, Age, Promised, Set, Durability, ThirdPeer],
    );
    family(
        visit,
        detached.with(Promised, 2),
        &[Age, Set, Durability, Incarnation, ThirdPeer, Bound, Wishes],
    );
    family(
        visit,
        detached.with(Promised, 2),
        &[Server, Paused, Request, Set, ThirdPeer],
    );
    family(visit, usual, &[Postmaster, Server, HolderPeer, Promised, Set]);
    family(
        visit,
        usual,
        &[Postmaster, Server, HolderPeer, ThirdPeer, MemberRequest],
    );
    // Follow, rewind, clone.
    family(
        visit,
        usual,
        &[Holder, Postmaster, Server, Upstream, Promised, Incarnation],
    );
    let down = usual.with(Postmaster, 0).with(Server, 0);
    family(
        visit,
        down,
        &[Me, Holder, Directory, Upstream, Promised, Held, Age],
    );
    family(
        visit,
        down,
        &[Holder, Directory, Upstream, Condemned, Job, Paused],
    );
    family(
        visit,
        down,
        &[Directory, Upstream, Condemned, Job, Wishes, MemberRequest],
    );
    family(
        visit,
        down.with(Me, 1),
        &[Holder, Directory, Held, Peers, Identifier, Renewal],
    );
    // Take office, stay, leave.
    let primary = Choice::primary();
    let closed = primary.with(Postmaster, 0).with(Server, 0);
    family(
        visit,
        closed,
        &[
            Renewal, Confirmed, Directory, Held, Promised, Licence, Write, Identifier,
        ],
    );
    family(
        visit,
        closed,
        &[Me, Directory, HandingOver, ThirdPeer, Down, Stopping, Write],
    );
    let closing = closed.with(Postmaster, 9);
    family(
        visit,
        closing,
        &[
            Me,
            Directory,
            HandingOver,
            ThirdPeer,
            HolderPeer,
            Stopping,
            Paused,
            Write,
            Renewal,
        ],
    );
    family(visit, closed, &[Directory, HandingOver, ThirdPeer, Set, Write]);
    family(
        visit,
        primary,
        &[Renewal, Confirmed, Promised, Licence, Server, Postmaster, Write],
    );
    family(visit, primary, &[Set, Durability, Told, ThirdPeer, Write]);
    family(visit, primary, &[Set, Durability, Told, Bound, Incarnation, Held]);
    family(
        visit,
        primary,
        &[Set, Renewal, Confirmed, HolderPeer, ThirdPeer, Blind],
    );
    family(
        visit,
        primary,
        &[Request, HandingOver, ThirdPeer, Down, Paused, Stopping, Set],
    );
    let named = detached.with(Holder, 0);
    family(
        visit,
        named,
        &[Server, Postmaster, Renewal, Promised, Licence, Write],
    );
    family(
        visit,
        named.with(Renewal, 0).with(Licence, 2),
        &[Set, Durability, Promised, Write, Held],
    );
    sweep(visit);
}

/// Every combination of the values of some choices, the others as in `base`.
fn family(visit: Visit<'_>, base: Choice, free: &[Of]) {
    let mut choice = base;
    for of in free {
        choice.0[*of as usize] = 0;
    }
    loop {
        show(visit, &choice);
        let Some(next) = free.iter().find(|of| {
            let at = **of as usize;
            choice.0[at] = (choice.0[at] + 1) % SIZES[at];
            choice.0[at] != 0
        }) else {
            return;
        };
        debug_assert!(choice.0[*next as usize] > 0);
    }
}

/// The same points at every run, spread over all choices.
fn sweep(visit: Visit<'_>) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut draw = |size: u8| {
        // Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (SplitMix64).
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        u8::try_from((z ^ (z >> 31)) % u64::from(size)).unwrap_or(0)
    };
    let more = std::env::var("PODGRES_LEASE_SWEEP")
        .ok()
        .and_then(|number| number.parse().ok());
    for point in 0..more.unwrap_or(SWEEP) {
        let mut choice = match point % 3 {
            0 => Choice::usual(),
            1 => Choice::primary(),
            _ => Choice::usual().with(Of::Postmaster, 0).with(Of::Server, 0),
        };
        for (chosen, size) in choice.0.iter_mut().zip(SIZES) {
            // Half of the choices stay usual: with all at random, most worlds would end at the first row.
            if draw(2) == 0 {
                *chosen = draw(size);
            }
        }
        show(visit, &choice);
    }
}

fn show(visit: Visit<'_>, choice: &Choice) {
    visit(
        choice,
        &lease_policy(choice),
        &remembered(choice),
        &observed(choice),
    );
}
