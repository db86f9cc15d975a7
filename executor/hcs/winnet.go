package hcs

import (
	"errors"
	"fmt"
)

// hcn is what is asked of Windows's Host Compute Network.
type hcn interface {
	newNamespace() (id string, err error)
	deleteNamespace(id string) error

	// newEndpoint makes an endpoint with a name, in the NAT network.
	newEndpoint(name string) (id string, err error)
	attach(namespace, endpoint string) error
	detach(namespace, endpoint string) error
	deleteEndpoint(id string) error

	// endpoints lists those whose name begins with prefix, with their namespaces.
	endpoints(prefix string) (map[string]string, error)
}

// A network is the namespace and endpoint of one container. What of it was made is undone in the opposite order, always all of it.
type network struct {
	api       hcn
	namespace string
	undo      []func() error
}

// openNetwork makes a network, or nothing. name carries the run.
func openNetwork(api hcn, name string) (*network, error) {
	n := &network{api: api}
	fail := func(what string, err error) (*network, error) {
		return nil, errors.Join(fmt.Errorf("network of a container: %s: %w", what, err), n.close())
	}
	// The endpoint first: it has a name to be found by if this process is killed.
	endpoint, err := api.newEndpoint(name)
	if err != nil {
		return fail("make an endpoint", err)
	}
	n.undo = append(n.undo, func() error { return api.deleteEndpoint(endpoint) })
	if n.namespace, err = api.newNamespace(); err != nil {
		return fail("make a namespace", err)
	}
	n.undo = append(n.undo, func() error { return api.deleteNamespace(n.namespace) })
	if err := api.attach(n.namespace, endpoint); err != nil {
		return fail("attach the endpoint", err)
	}
	n.undo = append(n.undo, func() error { return api.detach(n.namespace, endpoint) })
	return n, nil
}

func (n *network) close() error {
	var errs []error
	for i := len(n.undo) - 1; i >= 0; i-- {
		errs = append(errs, n.undo[i]())
	}
	n.undo = nil
	return errors.Join(errs...)
}

// removeNetworks removes what a killed run has left.
func removeNetworks(api hcn, prefix string) error {
	left, err := api.endpoints(prefix)
	if err != nil {
		return fmt.Errorf("list endpoints: %w", err)
	}
	var errs []error
	for endpoint, namespace := range left {
		if namespace != "" {
			errs = append(errs, api.detach(namespace, endpoint), api.deleteNamespace(namespace))
		}
		errs = append(errs, api.deleteEndpoint(endpoint))
	}
	return errors.Join(errs...)
}
