#!/bin/bash
# The digests of what this machine may run. /etc and /root stand for the whole disk, which takes minutes.

OUTPUT=/root/allowlist.txt
ALGO=sha256sum

rm -f "$OUTPUT"
cd /
head -n 1 /sys/kernel/security/ima/ascii_runtime_measurements | awk '{ print $4 "  boot_aggregate" }' | sed 's/.*://' >> "$OUTPUT"
find `ls / | grep -E "^etc$|^root$"` -xdev \( -fstype rootfs -o -xtype f -type l -o -type f \) -uid 0 -exec "$ALGO" '/{}' >> "$OUTPUT" \;

cat << EOT > /root/greets.sh
#!/bin/bash
echo "Hello!"
EOT
chmod a+x /root/greets.sh
"$ALGO" /root/greets.sh >> "$OUTPUT"
