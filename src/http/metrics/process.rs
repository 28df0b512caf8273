//! What the kernel knows of the process, under the names that every exporter has.

use procfs::WithCurrentSystemInfo as _;
use procfs::process::Process;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// Empty where `/proc` is hidden.
pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    let Ok(process) = Process::myself() else {
        return registry;
    };
    let all = registry.sub_registry_with_prefix("process");
    if let Ok(stat) = process.stat() {
        #[allow(clippy::cast_precision_loss)] // seconds need no more
        let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second().max(1) as f64;
        let help = "Processor time, in the program and in the kernel for it";
        all.register_with_unit("cpu", help, Unit::Seconds, ConstCounter::new(seconds));
        let resident = ConstGauge::new(stat.rss_bytes().get());
        let help = "Memory that is in use";
        all.register_with_unit("resident_memory", help, Unit::Bytes, resident);
        let virtual_memory = ConstGauge::new(stat.vsize);
        let help = "Address space that is in use";
        all.register_with_unit("virtual_memory", help, Unit::Bytes, virtual_memory);
        let threads = ConstGauge::new(stat.num_threads);
        all.register("threads", "Threads", threads);
    }
    if let Ok(open) = process.fd_count() {
        let open = ConstGauge::new(u64::try_from(open).unwrap_or(u64::MAX));
        all.register("open_fds", "Open file descriptors", open);
    }
    if let Ok(limits) = process.limits()
        && let procfs::process::LimitValue::Value(most) = limits.max_open_files.soft_limit
    {
        let help = "File descriptors that there may be";
        all.register("max_fds", help, ConstGauge::new(most));
    }
    registry
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use prometheus_client::encoding::text::encode_registry;

    #[test]
    fn a_process_knows_its_time_its_memory_and_its_descriptors() {
        let mut text = String::new();
        encode_registry(&mut text, &registry()).unwrap();
        for name in [
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_virtual_memory_bytes ",
            "process_threads ",
            "process_open_fds ",
            "process_max_fds ",
        ] {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            let value: f64 = value.unwrap().parse().unwrap();
            assert!(value > 0.0 || name.starts_with("process_cpu"), "{text}");
        }
    }
}
