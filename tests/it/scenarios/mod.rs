//! One file for each behaviour that needs more than one room; the file's name is the sentence.

mod a_new_client_is_served_beside_5000_silent_ones;
mod a_stolen_login_is_paused_and_its_mail_is_held;
mod a_warm_up_overflows_to_a_shared_address;
mod attempts_keep_what_was_said;
mod delivery_connections;
mod delivery_destinations;
mod delivery_hostile_peers;
mod delivery_requiretls;
mod delivery_rounds;
mod delivery_tls;
mod delivery_tls_policies;
mod listeners_follow_virtual_ips;
mod mail_goes_by_relays;
mod mail_keeps_to_the_families_of_its_virtual_ip;
mod one_record_of_the_service_permits_every_virtual_ip;
mod replies_of_several_lines_are_kept;
mod tls_is_reported_to_recipient_domains;
mod what_comes_back_is_heeded;
mod what_large_receivers_say_is_heeded;
