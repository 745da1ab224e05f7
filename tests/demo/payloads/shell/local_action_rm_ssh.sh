#!/bin/bash

# Consider only revocation types
kind=$(grep -o '"type":"[^"]*' $1 | grep -o '[^"]*$')
[ "$kind" != "revocation" ] && exit 0

echo "Action type: revocation"

# Directory where the payload is stored.  It also is part of the
# secure directory
unzipped=/var/lib/keylime/secure/unzipped

agent_id=$(grep -o '"agent_id":"[^"]*' $1 | grep -o '[^"]*$')
ip=$(grep -o '"ip":"[^"]*' $1 | grep -o '[^"]*$')

echo "Compromised system: ${agent_id} (${ip})"

if [ -f "${unzipped}/${agent_id}-cert.crt" ]; then
  echo "Removing cerificates from inside the compromised system"
  rm -f /root/.ssh/id_rsa
  rm -f /root/.ssh/id_rsa.pub
  rm -f /root/.ssh/authorized_keys
else
  echo "Blocking compromised system"
  iptables -A INPUT -s "$ip" -j DROP
fi
