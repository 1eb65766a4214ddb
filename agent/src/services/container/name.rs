//! Names for containers whose user gave none.

const HOW: [&str; 32] = [
    "able", "apt", "bold", "brave", "bright", "brisk", "calm", "clear", "deft", "eager", "fair", "fleet",
    "fond", "frank", "free", "gentle", "glad", "keen", "kind", "light", "lively", "merry", "mild", "neat",
    "nimble", "proud", "quick", "quiet", "spry", "sure", "swift", "wise",
];
const WHAT: [&str; 32] = [
    "anchor", "barge", "bay", "beacon", "bow", "breeze", "buoy", "cape", "cove", "current", "deck", "dock",
    "ferry", "gull", "harbor", "heron", "hull", "island", "jetty", "keel", "lagoon", "mast", "oar", "pier",
    "port", "reef", "river", "rudder", "sail", "shore", "tide", "wharf",
];

/// Two words and a number: easy to say, and unlikely to be in use.
pub(super) fn random() -> String {
    let dice: [u8; 4] = rand::random();
    let how = HOW[usize::from(dice[0]) % HOW.len()];
    let what = WHAT[usize::from(dice[1]) % WHAT.len()];
    let number = u16::from_le_bytes([dice[2], dice[3]]) % 1000;
    format!("{how}_{what}_{number}")
}
