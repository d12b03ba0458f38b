//! Network cards: their queues, and the CPUs on which packets arrive.
//!
//! The kernel has a packet's work (TCP, the wake-up of a shard) done on the CPU that took the interrupt of its
//! queue, or on those of the queue's mask (receive packet steering, RPS). A card with fewer queues than there are
//! CPUs, and without a mask, keeps one CPU full while others wait.

use std::collections::BTreeSet;

use super::sysctls::{Reading, Sysctls, Unreadable};

/// Cards, queues of a card, and interrupts of a card that are looked at.
const ENTRIES_MAX: usize = 1024;

/// A network interface with a device of its own that is not down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name, `eth0`.
    pub name: String,
    /// Receive queues, by number.
    pub receive: Vec<Queue>,
    /// Transmit queues, by number.
    pub transmit: Vec<Queue>,
    /// Interrupts of receive queues.
    pub interrupts: Vec<Interrupt>,
}

/// One queue of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The file of its mask, relative to the root: `rps_cpus` of a receive queue, `xps_cpus` of a transmit queue.
    pub file: String,
    /// CPUs of the mask; none: the CPU of the interrupt, or of the sender.
    pub cpus: Reading<BTreeSet<usize>>,
}

/// An interrupt of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its number.
    pub number: usize,
    /// CPUs that may take it.
    pub cpus: BTreeSet<usize>,
}

/// The cards of a host, by name. Interfaces without a device (loopback, bridges, those of a container) are none.
///
/// # Errors
/// There is no `/sys/class/net`.
pub fn read(files: &Sysctls) -> Reading<Vec<Card>> {
    let names = files.list("sys/class/net", ENTRIES_MAX)?;
    Ok(names.into_iter().filter_map(|name| card(files, name)).collect())
}

fn card(files: &Sysctls, name: String) -> Option<Card> {
    let dir = format!("sys/class/net/{name}");
    let is_down = files.text(&format!("{dir}/operstate")).is_ok_and(|state| state == "down");
    if is_down || !files.exists(format!("{dir}/device")) {
        return None;
    }
    let queues = files.list(&format!("{dir}/queues"), ENTRIES_MAX).unwrap_or_default();
    let of = |kind: &str, mask: &str| -> Vec<Queue> {
        let mut numbers: Vec<usize> =
            queues.iter().filter_map(|queue| queue.strip_prefix(kind)?.parse().ok()).collect();
        numbers.sort_unstable();
        let files_of = numbers.iter().map(|number| format!("{dir}/queues/{kind}{number}/{mask}"));
        files_of.map(|file| Queue { cpus: mask_of(files, &file), file }).collect()
    };
    let (receive, transmit) = (of("rx-", "rps_cpus"), of("tx-", "xps_cpus"));
    Some(Card { interrupts: interrupts(files, &dir), receive, transmit, name })
}

/// The interrupts of the card's receive queues: each has a directory with the name that the driver gave it.
fn interrupts(files: &Sysctls, dir: &str) -> Vec<Interrupt> {
    // A virtio device is the child of the PCI device that has the interrupts.
    let places = ["device/msi_irqs", "device/../msi_irqs"];
    let numbers =
        places.iter().find_map(|place| files.list(&format!("{dir}/{place}"), ENTRIES_MAX).ok());
    let mut numbers: Vec<usize> =
        numbers.unwrap_or_default().iter().filter_map(|number| number.parse().ok()).collect();
    numbers.sort_unstable();
    let receives = |number: &usize| {
        let entries = files.list(&format!("proc/irq/{number}"), ENTRIES_MAX).unwrap_or_default();
        entries.iter().any(|entry| is_receive_queue(entry))
    };
    let interrupt = |number: usize| {
        let text = files.text(&format!("proc/irq/{number}/smp_affinity_list")).ok()?;
        Some(Interrupt { number, cpus: super::facts::cpus_of_list(&text)?.into_iter().collect() })
    };
    numbers.into_iter().filter(receives).filter_map(interrupt).collect()
}

/// True for a driver's name of a receive queue's interrupt: `virtio2-input.0`, `eth0-TxRx-3`, `mlx5_comp0@pci:...`,
/// `ens5-Tx-Rx-0`, `eth0-rx-1`; and not for `virtio2-config`, `eth0-tx-0`, `mlx5_async0`.
fn is_receive_queue(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["input", "rx", "comp", "ntfy-block"].iter().any(|part| name.contains(part))
}

/// CPUs of a mask such as `00000003` or `ff,00000000`: groups of 32 CPUs, the highest first.
fn mask_of(files: &Sysctls, file: &str) -> Reading<BTreeSet<usize>> {
    let text = files.text(file)?;
    let mut cpus = BTreeSet::new();
    for (group, digits) in text.rsplit(',').enumerate() {
        let bits = u32::from_str_radix(digits, 16)
            .map_err(|_| Unreadable(format!("/{file} holds {text:?}, which is not a mask")))?;
        cpus.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| group * 32 + bit));
    }
    Ok(cpus)
}

/// A mask of these CPUs, as the kernel takes it.
pub fn mask(cpus: impl IntoIterator<Item = usize>) -> String {
    let mut groups = vec![0_u32];
    for cpu in cpus {
        let group = cpu / 32;
        if groups.len() <= group {
            groups.resize(group + 1, 0);
        }
        groups[group] |= 1 << (cpu % 32);
    }
    let (first, rest) = groups.split_last().unwrap_or((&0, &[]));
    let rest = rest.iter().rev().map(|group| format!(",{group:08x}"));
    std::iter::once(format!("{first:x}")).chain(rest).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::host::facts::tests::FakeHost;

    /// A host with the card `eth0`: so many queues of each kind, and an interrupt for each receive queue on CPU 0.
    pub(in crate::host) fn put_card(host: &FakeHost, queues: usize) {
        let dir = "sys/class/net/eth0";
        host.put("sys/class/net/lo/operstate", "unknown\n");
        host.put(&format!("{dir}/operstate"), "up\n");
        host.put(&format!("{dir}/device/msi_irqs/30"), "msix\n");
        host.put("proc/irq/30/virtio1-config/x", "");
        host.put("proc/irq/30/smp_affinity_list", "0-1\n");
        for queue in 0..queues {
            host.put(&format!("{dir}/queues/rx-{queue}/rps_cpus"), "0\n");
            host.put(&format!("{dir}/queues/tx-{queue}/xps_cpus"), "0\n");
            let number = 31 + queue;
            host.put(&format!("{dir}/device/msi_irqs/{number}"), "msix\n");
            host.put(&format!("proc/irq/{number}/virtio1-input.{queue}/x"), "");
            host.put(&format!("proc/irq/{number}/smp_affinity_list"), "0\n");
        }
    }

    #[test]
    fn a_card_has_queues_and_the_interrupts_of_those_that_receive() {
        let host = FakeHost::new("cards", &[("sys/class/net/eth1/operstate", "up\n")]);
        put_card(&host, 12);
        host.put("sys/class/net/eth0/queues/rx-10/rps_cpus", "1,00000002\n");
        host.put("sys/class/net/eth0/queues/rx-11/rps_cpus", "many\n");
        host.put("sys/class/net/eth2/operstate", "down\n");
        host.put("sys/class/net/eth2/device/x", "");
        let cards = read(&host.files()).unwrap();
        let [card] = &cards[..] else { panic!("{cards:?}") };
        assert_eq!((&*card.name, card.receive.len(), card.transmit.len()), ("eth0", 12, 12));
        // By number, and not by letters.
        assert_eq!(card.receive[10].cpus, Ok(BTreeSet::from([1, 32])));
        assert!(card.receive[11].cpus.as_ref().unwrap_err().0.contains("many"));
        assert_eq!(card.interrupts.len(), 12);
        assert_eq!(card.interrupts[0], Interrupt { number: 31, cpus: BTreeSet::from([0]) });
        assert!(read(&FakeHost::new("no cards", &[]).files()).is_err());
    }

    #[test]
    fn masks_are_written_as_they_are_read() {
        assert_eq!(mask([0, 1]), "3");
        assert_eq!(mask([]), "0");
        assert_eq!(mask([1, 32, 95]), "80000000,00000001,00000002");
    }

    #[test]
    fn interrupts_of_receive_queues_are_known_by_their_names() {
        for name in [
            "virtio2-input.0",
            "eth0-TxRx-3",
            "mlx5_comp0@pci:0000:00:05.0",
            "ens5-Tx-Rx-0",
            "eth0-rx-1",
        ] {
            assert!(is_receive_queue(name), "{name}");
        }
        for name in
            ["virtio2-config", "virtio2-output.0", "eth0-tx-0", "mlx5_async0@pci", "smp_affinity"]
        {
            assert!(!is_receive_queue(name), "{name}");
        }
    }
}
