//! Hosts with one address each, on one network, and rules that break it.
//!
//! A host is a network namespace that is connected to a bridge by a veth pair. The clients and the harness
//! are on the bridge. Rules drop incoming packets on a host by their source, so that each direction can fail
//! separately.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::finding::HarnessError;
use crate::history::NodeId;
use crate::sandbox::run;

/// Port of a node.
pub const HTTP_PORT: u16 = 8000;
/// Port at which other nodes reach a node, through its proxy if it has one.
pub const PEER_PORT: u16 = 9000;

/// A network of hosts. `number` distinguishes it from the others of the run.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    number: u8,
}

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    pub id: NodeId,
    namespace: String,
    pub address: Ipv4Addr,
}

/// The treatment of packets from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Dropped, so that the sender waits.
    Drop(Ipv4Addr),
    /// Rejected, so that the sender gets an error at once.
    Reject(Ipv4Addr),
    /// Dropped with this probability, in percent.
    Lose(Ipv4Addr, u8),
}

impl Network {
    pub fn create(number: u8) -> Result<Self> {
        let network = Network { number };
        let bridge = network.bridge();
        // A fixed address. By default a bridge has the lowest address of its ports, which changes when a host
        // is added, and packets to the former address are lost for most of a minute.
        let hardware_address = format!("02:00:00:00:00:{number:02x}");
        run("ip", &["link", "add", &bridge, "address", &hardware_address, "type", "bridge"])?;
        for address in [network.clients(), network.proxies()] {
            run("ip", &["address", "add", &format!("{address}/24"), "dev", &bridge])?;
        }
        run("ip", &["link", "set", &bridge, "up"])?;
        Ok(network)
    }

    /// Address of the clients.
    pub fn clients(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, self.number, 254)
    }

    /// Address of the proxies, to which no rule applies.
    pub fn proxies(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, self.number, 253)
    }

    fn bridge(&self) -> String {
        format!("lane-{}", self.number)
    }

    /// Removes the network and its hosts with numbers up to `last`.
    pub fn remove(&self, last: NodeId) -> Result<()> {
        for id in 1..=last {
            // Delete the link explicitly: the kernel removes a namespace later, and the next run may need the name
            // before.
            run("ip", &["link", "delete", &self.cable(id)])?;
            run("ip", &["netns", "delete", &self.namespace(id)])?;
        }
        run("ip", &["link", "delete", &self.bridge()])
    }

    fn namespace(&self, id: NodeId) -> String {
        format!("lane-{}-node-{id}", self.number)
    }

    /// The end of a host's veth pair on the bridge.
    fn cable(&self, id: NodeId) -> String {
        format!("l{}n{id}", self.number)
    }

    fn address_of(&self, id: NodeId) -> Result<Ipv4Addr> {
        let last = u8::try_from(id).ok().filter(|last| (1..=200).contains(last));
        Ok(Ipv4Addr::new(10, 99, self.number, last.context("a host's number must be from 1 to 200")?))
    }

    /// The address at which other nodes reach a host, which need not exist yet.
    pub fn peer_of(&self, id: NodeId) -> Result<SocketAddr> {
        Ok(SocketAddr::V4(SocketAddrV4::new(self.address_of(id)?, PEER_PORT)))
    }

    /// Adds a host with a number from 1 to 200.
    pub fn add_host(&self, id: NodeId) -> Result<Host> {
        let address = self.address_of(id)?;
        let namespace = self.namespace(id);
        let cable = self.cable(id);
        run("ip", &["netns", "add", &namespace])?;
        run("ip", &["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        run("ip", &["link", "set", &cable, "master", &self.bridge(), "up"])?;
        run("ip", &["-n", &namespace, "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        run("ip", &["-n", &namespace, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
        let host = Host { id, namespace, address };
        host.nft(
            "table inet faults {\n chain incoming {\n type filter hook input priority 0; policy accept;\n }\n}\n",
        )?;
        Ok(host)
    }
}

impl Host {
    /// Address of its node.
    pub fn http(&self) -> SocketAddr {
        SocketAddr::V4(SocketAddrV4::new(self.address, HTTP_PORT))
    }

    /// Address at which other nodes reach its node.
    pub fn peer(&self) -> SocketAddr {
        self.peer_after(0)
    }

    /// The same after the node has moved this many times.
    pub fn peer_after(&self, moves: u16) -> SocketAddr {
        SocketAddr::V4(SocketAddrV4::new(self.address, PEER_PORT + moves))
    }

    /// A command that runs on this host. It shares everything else with the harness, including the mounts:
    /// `ip netns exec` would keep a copy of them, and thus keep file systems mounted after they were
    /// unmounted.
    pub fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace_path())).arg("--");
        command
    }

    fn namespace_path(&self) -> String {
        format!("/run/netns/{}", self.namespace)
    }

    /// Replaces the rules for incoming packets; no rules means no fault.
    pub fn set_rules(&self, rules: &[Rule]) -> Result<()> {
        let mut script = "flush chain inet faults incoming\n".to_owned();
        for rule in rules {
            let rule = match rule {
                Rule::Drop(from) => format!("ip saddr {from} drop"),
                Rule::Reject(from) => format!("ip saddr {from} reject"),
                Rule::Lose(from, percent) => format!("ip saddr {from} numgen random mod 100 < {percent} drop"),
            };
            script.push_str(&format!("add rule inet faults incoming {rule}\n"));
        }
        self.nft(&script)
    }

    fn nft(&self, script: &str) -> Result<()> {
        let mut nft = self.command();
        nft.args(["nft", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut nft = nft.spawn().context("cannot start `nft`")?;
        let mut input = nft.stdin.take().context("`nft` has no input")?;
        input.write_all(script.as_bytes()).context("cannot write to `nft`")?;
        drop(input);
        let output = nft.wait_with_output().context("cannot wait for `nft`")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(HarnessError(format!("`nft` rejected {script:?}: {}", said.trim())));
        }
        Ok(())
    }

    /// A listener on this host, for a proxy that runs in the harness.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        let namespace = File::open(self.namespace_path()).context("cannot open the host's network")?;
        // A thread has its own network namespace, and a socket stays in the one in which it was created.
        let listener = std::thread::spawn(move || -> std::io::Result<TcpListener> {
            // SAFETY: the descriptor is open, and the call changes only this thread, which ends here.
            if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
            TcpListener::bind(address)
        });
        let listener = listener.join().map_err(|_| anyhow!("a thread panicked"))?;
        listener.with_context(|| format!("cannot listen on {address}"))
    }
}
