# Verifies each signature of each message with Mail::DKIM: `perl verify_dkim.pl ZONE MESSAGE...`.
# ZONE has lines `name<TAB>text`. Prints one line per message: a verdict for each signature.
use strict;
use warnings;
use Mail::DKIM::Verifier;
use Mail::DKIM::DNS;
use Net::DNS::RR;

my %zone;
open my $lines, '<', shift or die;
while (<$lines>) { chomp; my ( $name, $text ) = split /\t/, $_, 2; $zone{$name} = $text; }

{
    no warnings 'redefine';
    *Mail::DKIM::DNS::query = sub {
        my $text = $zone{ $_[0] };
        return unless defined $text;
        return Net::DNS::RR->new( owner => $_[0], type => 'TXT', txtdata => [ $text =~ /(.{1,255})/g ] );
    };
}

for my $path (@ARGV) {
    my $verifier = Mail::DKIM::Verifier->new;
    open my $message, '<:raw', $path or die;
    { local $/; $verifier->PRINT(<$message>); }
    $verifier->CLOSE;
    my @verdicts = map { ( my $detail = $_->result_detail ) =~ s/ /_/g; $detail } $verifier->signatures;
    print join( ' ', @verdicts ), "\n";
}
