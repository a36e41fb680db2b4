<?php
// Symfony Mailer, by a DSN like the one `smtp-account add` prints; see README.md for the arguments.
use Symfony\Component\Mailer\Exception\TransportExceptionInterface;
use Symfony\Component\Mailer\Mailer;
use Symfony\Component\Mailer\Transport;
use Symfony\Component\Mime\Email;

require 'Symfony/Component/Mailer/autoload.php';
require_once 'Symfony/Component/Mime/autoload.php';
[, $host, $port, $way, $cafile, $login, $password, $from, $recipients, $subject, $text] = $argv;
$scheme = $way === 'tls' ? 'smtps' : 'smtp';
$dsn = sprintf('%s://%s:%s@%s:%s', $scheme, rawurlencode($login), rawurlencode($password), $host, $port);
$transport = Transport::fromDsn($dsn);
$transport->getStream()->setStreamOptions(['ssl' => ['cafile' => $cafile]]);
$mail = (new Email())->from($from)->to(...explode(',', $recipients))->subject($subject)->text(file_get_contents($text));
if (isset($argv[11])) {
    $mail->attachFromPath($argv[11], null, 'application/pdf');
}
try {
    (new Mailer($transport))->send($mail);
} catch (TransportExceptionInterface $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(1);
}
