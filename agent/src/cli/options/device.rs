//! Devices: `SOURCE[:DESTINATION][:PERMISSIONS]`, paths absolute. The source is one of the agent's machine.

use sampan_proto::sampan::Device;

pub(crate) fn device(text: &str) -> Result<Device, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, permissions) = match parts[..] {
        [source] => (source, source, ""),
        [source, destination] if destination.starts_with('/') => (source, destination, ""),
        [source, permissions] => (source, source, permissions),
        [source, destination, permissions] => (source, destination, permissions),
        _ => return Err("expected SOURCE, SOURCE:DESTINATION or SOURCE:DESTINATION:rwm".to_owned()),
    };
    for path in [source, destination] {
        if !path.starts_with('/') {
            return Err(format!("{path:?} is not an absolute path"));
        }
    }
    if let Some(other) = permissions.chars().find(|access| !"rwm".contains(*access)) {
        return Err(format!("{other:?} is no permission; there are r, w and m"));
    }
    Ok(Device {
        source: source.to_owned(),
        destination: destination.to_owned(),
        permissions: permissions.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_where_it_is_on_the_host_unless_said_otherwise() {
        for (text, source, destination, permissions) in [
            ("/dev/fuse", "/dev/fuse", "/dev/fuse", ""),
            ("/dev/fuse:r", "/dev/fuse", "/dev/fuse", "r"),
            ("/dev/sda:/dev/xvda", "/dev/sda", "/dev/xvda", ""),
            ("/dev/sda:/dev/xvda:rw", "/dev/sda", "/dev/xvda", "rw"),
        ] {
            let expected = Device {
                source: source.into(),
                destination: destination.into(),
                permissions: permissions.into(),
            };
            assert_eq!(device(text), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_device_says_what_would_be() {
        assert!(device("fuse").unwrap_err().contains("absolute"));
        assert!(device("/dev/sda:x").unwrap_err().contains("r, w and m"));
        assert!(device("/dev/sda:xvda:r").unwrap_err().contains("absolute"));
        assert!(device("/a:/b:r:w").unwrap_err().contains("SOURCE:DESTINATION"));
    }
}
