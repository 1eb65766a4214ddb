//! What keeps a bridge quiet: a table of the bridge family, named after the bridge.
//!
//! Each interface that comes up reports several times which IPv6 multicast groups it listens to (MLD, RFC 3810). The
//! reports are for multicast routers, of which there is none on a bridge of ours, and a bridge that knows no router gives
//! them to every port: with 500 pods there, one more pod made the kernel handle thousands of packets. They are dropped
//! where they come in, told by the link-layer addresses of pods: not every kernel can tell bridges apart there
//! (`NFT_BRIDGE_META`). Multicast itself goes to all ports, as before: the bridge hears of no group and leaves none out.

use super::address::OF_PODS;
use super::netfilter::{Command, Family, Load, Rule, request_in, transaction};
use super::netlink::{CREATE, Message};

const CHAIN: &str = "prerouting";
const ICMPV6: u8 = 58;
/// Version 2, which the kernel speaks unless a router asks for the first (RFC 3810, section 5.2).
const LISTENER_REPORT: u8 = 143;

/// Creates the table, or renews one that exists. A kernel without the bridge family refuses.
pub(super) fn install(bridge: &str) -> Vec<Message> {
    const ACCEPT: u32 = 1;
    const PREROUTING: u32 = 0;
    /// That of filters: `NF_BR_PRI_FILTER_BRIDGED` of linux/netfilter_bridge.h.
    const PRIORITY: i32 = -200;
    let chain = request_in(Family::Bridge, Command::NewChain, CREATE, "create nftables chain", |chain| {
        chain.text(1, bridge).text(3, CHAIN);
        chain.nested(4, |hook| {
            hook.number(1, PREROUTING).number(2, PRIORITY.cast_unsigned());
        });
        chain.number(5, ACCEPT).text(7, "filter");
    });
    let renew = request_in(Family::Bridge, Command::DeleteRule, 0, "renew nftables rules", |rule| {
        rule.text(1, bridge);
    });
    let drop_reports = Rule::default()
        .equal(Load::LinkSource, &OF_PODS)
        .equal(Load::TransportProtocol, &[ICMPV6])
        .equal(Load::IcmpType, &[LISTENER_REPORT])
        .drop_packet()
        .append_in(Family::Bridge, bridge, CHAIN);
    transaction(vec![
        table(Command::NewTable, CREATE, "create nftables table", bridge),
        chain,
        renew,
        drop_reports,
    ])
}

/// Removes the table with all that is in it.
pub(super) fn remove(bridge: &str) -> Vec<Message> {
    transaction(vec![table(Command::DeleteTable, 0, "delete nftables table", bridge)])
}

fn table(command: Command, flags: u16, action: &'static str, bridge: &str) -> Message {
    request_in(Family::Bridge, command, flags, action, |table| {
        table.text(1, bridge);
    })
}
