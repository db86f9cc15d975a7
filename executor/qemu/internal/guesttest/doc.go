// Package guesttest has stand-ins for machines, and for what hostile ones say, for tests. It refuses to know who is tested.
package guesttest
