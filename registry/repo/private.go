package repo

import (
	"net/netip"
	"strconv"
	"strings"
)

// localDomains are those whose names mean something else in each network.
// https://www.rfc-editor.org/rfc/rfc6762#appendix-G
var localDomains = []string{"localhost", "local", "internal", "home.arpa", "lan", "home", "corp", "private", "intranet"}

// IsPrivateName reports a host that cannot be meant for everybody: an address that is not public, a name without a domain, or one in a domain that
// each network has for itself. What is not ASCII, nor a name of the DNS, is not judged by its look. Nor is what ends in a number: no domain does, but
// much software takes it for an address in another spelling, as 127.1 or 0x7f.0.0.1.
func IsPrivateName(hostname string) bool {
	if ip, err := netip.ParseAddr(hostname); err == nil {
		return !IsPublic(ip)
	}
	hostname = strings.TrimSuffix(strings.ToLower(hostname), ".")
	for _, d := range localDomains {
		if strings.HasSuffix("."+hostname, "."+d) {
			return true
		}
	}
	outside := func(r rune) bool { return r <= ' ' || r > '~' }
	return !strings.Contains(hostname, ".") || strings.ContainsFunc(hostname, outside) || isNumber(hostname[strings.LastIndexByte(hostname, '.')+1:])
}

// isNumber reports what inet_aton takes as the last part of an address.
func isNumber(label string) bool {
	_, err := strconv.ParseUint(label, 0, 64)
	return err == nil || label != "" && strings.Trim(label, "0123456789") == "" || label == "0x"
}

// specialPurpose are the addresses that look like public ones, and are not, or lead to others that nobody can tell.
// https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry
var specialPurpose = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),        // this host
	netip.MustParsePrefix("100.64.0.0/10"),    // behind a provider's NAT, and metadata of some clouds
	netip.MustParsePrefix("192.0.0.0/24"),     // of protocols, and metadata of some clouds
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's host, from each of its machines
	netip.MustParsePrefix("192.0.2.0/24"),     // of documents, as the next two
	netip.MustParsePrefix("198.51.100.0/24"),  //
	netip.MustParsePrefix("203.0.113.0/24"),   //
	netip.MustParsePrefix("198.18.0.0/15"),    // of benchmarks
	netip.MustParsePrefix("240.0.0.0/4"),      // reserved, and broadcast
	netip.MustParsePrefix("::/96"),            // IPv4 inside
	netip.MustParsePrefix("::ffff:0:0:0/96"),  // IPv4 inside, for translators
	netip.MustParsePrefix("64:ff9b:1::/48"),   // a network's own NAT64
	netip.MustParsePrefix("100::/64"),         // discarded
	netip.MustParsePrefix("2001::/32"),        // Teredo
	netip.MustParsePrefix("2001:db8::/32"),    // of documents
	netip.MustParsePrefix("3fff::/20"),        // of documents
	netip.MustParsePrefix("5f00::/16"),        // of segment routing
	netip.MustParsePrefix("fec0::/10"),        // once site-local
}

// Prefixes of IPv6 addresses that an IPv4 address stands in.
var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour = netip.MustParsePrefix("2002::/16")
)

// IsPublic reports an address that means the same everywhere.
func IsPublic(ip netip.Addr) bool {
	ip = ip.Unmap()
	if ip.Zone() != "" || !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return false
	}
	b := ip.As16()
	switch {
	case nat64.Contains(ip):
		return IsPublic(netip.AddrFrom4([4]byte(b[12:])))
	case sixToFour.Contains(ip):
		return IsPublic(netip.AddrFrom4([4]byte(b[2:6])))
	}
	for _, p := range specialPurpose {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}
