//! As much of rtnetlink(7) as it takes to hand a network device over: find, move, give back addresses, set up.
//!
//! A socket stays in the network namespace that it was made in, wherever its process goes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::sys::{Error, Result};

/// Numbers of linux/rtnetlink.h, linux/netlink.h, linux/if_link.h and linux/if_addr.h.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE_NEW: u16 = 0x400 | 0x200;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_FLAGS: u16 = 8;
/// Address, local address, broadcast address, flags.
const IFA_KEPT: [u16; 4] = [1, 2, 4, IFA_FLAGS];
const IFA_F_PERMANENT: u32 = 0x80;
const IFF_UP: u32 = 1;
/// Of a message, of `struct ifinfomsg` and of `struct ifaddrmsg`.
const HEADER: usize = 16;
const LINK: usize = 16;
const ADDRESS: usize = 8;

/// An address of a device as the kernel tells it: what a request to add it has behind its header.
pub(crate) struct Address(Vec<u8>);

/// A conversation with the kernel about one network namespace.
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    /// About that in which the calling process is.
    pub(crate) fn open() -> Result<Netlink> {
        // NETLINK_ROUTE is the protocol of number 0.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
        socket.map(Netlink).map_err(|errno| Error::new("socket(AF_NETLINK)", errno))
    }

    /// The number of the device of this name.
    pub(crate) fn index(&self, name: &str) -> Result<u32> {
        let mut body = vec![0; LINK];
        attribute(&mut body, IFLA_IFNAME, &terminated(name));
        let answers = self.ask(&format!("RTM_GETLINK {name}"), RTM_GETLINK, 0, &body)?;
        let found = answers.iter().find(|(kind, _)| *kind == RTM_NEWLINK);
        let index = found.and_then(|(_, body)| number(body.get(4..8)?));
        index.ok_or_else(|| Error::new(format!("RTM_GETLINK {name}"), Errno::NODEV))
    }

    /// The addresses of a device that are to go with it: of global scope, and not given by a router for a while.
    pub(crate) fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        let call = format!("RTM_GETADDR {index}");
        let answers = self.ask(&call, RTM_GETADDR, DUMP, &[0; ADDRESS])?;
        let lasting = |(kind, body): &(u16, Vec<u8>)| {
            let of_device = body.get(4..8).and_then(number) == Some(index);
            let global = body.get(3) == Some(&0);
            *kind == RTM_NEWADDR && of_device && global && flags(body) & IFA_F_PERMANENT != 0
        };
        Ok(answers.into_iter().filter(lasting).map(|(_, body)| Address(body)).collect())
    }

    /// Gives a device to another network namespace, under a name that must be free there.
    pub(crate) fn hand_over(&self, index: u32, namespace: impl AsFd, name: &str) -> Result<()> {
        let mut body = link(index, 0);
        attribute(&mut body, IFLA_NET_NS_FD, &namespace.as_fd().as_raw_fd().to_ne_bytes());
        attribute(&mut body, IFLA_IFNAME, &terminated(name));
        self.ask(&format!("RTM_NEWLINK {index}: to the container as {name}"), RTM_NEWLINK, ACK, &body)
            .map(drop)
    }

    pub(crate) fn set_up(&self, index: u32) -> Result<()> {
        self.ask(&format!("RTM_NEWLINK {index}: up"), RTM_NEWLINK, ACK, &link(index, IFF_UP)).map(drop)
    }

    pub(crate) fn add(&self, index: u32, address: Address) -> Result<()> {
        let Address(told) = address;
        let mut body = told[..4].to_vec();
        body.extend(index.to_ne_bytes());
        // Not its label, which is made of the name that the device had.
        for (kind, value) in attributes(&told).filter(|(kind, _)| IFA_KEPT.contains(kind)) {
            attribute(&mut body, kind, value);
        }
        self.ask(&format!("RTM_NEWADDR {index}"), RTM_NEWADDR, ACK | CREATE_NEW, &body).map(drop)
    }

    /// Sends a request and returns what comes until the last word on it.
    fn ask(&self, call: &str, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<(u16, Vec<u8>)>> {
        let failed = |errno| Error::new(call, errno);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend((HEADER as u32 + body.len() as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | flags).to_ne_bytes());
        // Number and sender: there is one question at a time.
        message.extend([0; 8]);
        message.extend(body);
        send(&self.0, &message, SendFlags::empty()).map_err(failed)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let (count, _) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()).map_err(failed)?;
            for (kind, body) in messages(&buffer[..count]) {
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = body.get(..4).and_then(number).unwrap_or(0) as i32;
                        return if code < 0 {
                            Err(failed(Errno::from_raw_os_error(-code)))
                        } else {
                            Ok(answers)
                        };
                    }
                    _ => answers.push((kind, body.to_vec())),
                }
            }
            // A single thing that is asked for comes without another word.
            if flags & (ACK | DUMP) == 0 {
                return Ok(answers);
            }
        }
    }
}

/// The messages of one datagram, with what is behind their headers. What makes no sense ends it.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = number(bytes.get(..4)?)? as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes behind the fixed part of an address. What makes no sense ends them.
fn attributes(body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(ADDRESS..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The flags of an address: its own field has no room for the newer ones.
fn flags(body: &[u8]) -> u32 {
    let wide = attributes(body).find(|(kind, _)| *kind == IFA_FLAGS).and_then(|(_, value)| number(value));
    wide.unwrap_or_else(|| body.get(2).copied().unwrap_or(0).into())
}

/// `struct ifinfomsg`, with the flags to be set.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_and_others_are_not() {
        let netlink = Netlink::open().unwrap();
        assert_eq!(netlink.index("lo").unwrap(), 1);
        assert_eq!(netlink.index("nosuchdevice").unwrap_err().errno(), Errno::NODEV);
        // Its addresses are of the host's scope.
        assert!(netlink.addresses(1).unwrap().is_empty());
    }

    #[test]
    fn attributes_are_padded_and_messages_found_behind_each_other() {
        let mut body = Vec::new();
        attribute(&mut body, IFLA_IFNAME, &terminated("eth0"));
        assert_eq!((body.len(), body[0], body[8]), (12, 9, 0));
        let mut bytes = Vec::new();
        for kind in [RTM_NEWLINK, NLMSG_DONE] {
            bytes.extend(20u32.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 14]);
        }
        let kinds: Vec<u16> = messages(&bytes).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [RTM_NEWLINK, NLMSG_DONE]);
        assert_eq!(messages(&bytes[..19]).count(), 0, "one that is cut off is none");
    }

    #[test]
    fn flags_of_an_address_are_found_behind_other_attributes() {
        let mut body = vec![2, 24, 0x80, 0, 1, 0, 0, 0];
        assert_eq!(flags(&body), 0x80);
        attribute(&mut body, 1, &[10, 0, 0, 1]);
        attribute(&mut body, IFA_FLAGS, &0x100u32.to_ne_bytes());
        assert_eq!(flags(&body), 0x100);
        assert_eq!(flags(&[2, 24, 0x80, 0, 1, 0, 0, 0, 0, 0, 0, 0]), 0x80, "an attribute without a length");
    }
}
