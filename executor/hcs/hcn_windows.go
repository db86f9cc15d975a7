package hcs

import (
	"errors"
	"fmt"
	"strings"

	hcnlib "github.com/Microsoft/hcsshim/hcn"
)

// computeNetwork is this computer's Host Compute Network.
type computeNetwork struct{}

// natNetwork is the name of the network that Windows's container tools have by default.
const natNetwork = "nat"

func (computeNetwork) nat() (*hcnlib.HostComputeNetwork, error) {
	n, err := hcnlib.GetNetworkByName(natNetwork)
	if err == nil {
		return n, nil
	}
	all, lerr := hcnlib.ListNetworks()
	if lerr != nil {
		return nil, errors.Join(err, lerr)
	}
	for i := range all {
		if all[i].Type == hcnlib.NAT {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("no NAT network: %w; `New-HnsNetwork -Type NAT -Name nat` of the module HNS makes one", err)
}

func (computeNetwork) newNamespace() (string, error) {
	n, err := hcnlib.NewNamespace(hcnlib.NamespaceTypeHostDefault).Create()
	if err != nil {
		return "", err
	}
	return n.Id, nil
}

func (computeNetwork) deleteNamespace(id string) error {
	return ignoreMissing((&hcnlib.HostComputeNamespace{Id: id}).Delete())
}

func (c computeNetwork) newEndpoint(name string) (string, error) {
	nat, err := c.nat()
	if err != nil {
		return "", err
	}
	e, err := nat.CreateEndpoint(&hcnlib.HostComputeEndpoint{
		Name:               name,
		HostComputeNetwork: nat.Id,
		SchemaVersion:      hcnlib.SchemaVersion{Major: 2, Minor: 0},
	})
	if err != nil {
		return "", err
	}
	return e.Id, nil
}

func (computeNetwork) attach(namespace, endpoint string) error {
	return hcnlib.AddNamespaceEndpoint(namespace, endpoint)
}

func (computeNetwork) detach(namespace, endpoint string) error {
	return ignoreMissing(hcnlib.RemoveNamespaceEndpoint(namespace, endpoint))
}

func (computeNetwork) deleteEndpoint(id string) error {
	return ignoreMissing((&hcnlib.HostComputeEndpoint{Id: id}).Delete())
}

func (computeNetwork) endpoints(prefix string) (map[string]string, error) {
	all, err := hcnlib.ListEndpoints()
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, e := range all {
		if strings.HasPrefix(e.Name, prefix) {
			found[e.Id] = e.HostComputeNamespace
		}
	}
	return found, nil
}

func ignoreMissing(err error) error {
	if hcnlib.IsNotFoundError(err) {
		return nil
	}
	return err
}
